"""What the API keeps in memory of a job: little enough that a hundred thousand jobs are no burden.

A :class:`GenerationJob` as a Python object takes some 12 KB. A :class:`CachedJob` takes about 2: the few values that
polls, lists and the queue need, and the rest as the JSON text that it came in. Long texts are compressed: 10,000 jobs
whose prompts are as long as may be, and all of emoji, would take as much as a replica may.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, Self

from pydantic import ConfigDict

from kubediffusion.resources import meta
from kubediffusion.resources.generation_job import GenerationJob, Image, Phase
from kubediffusion.resources.objects import KubernetesObject, ObjectMeta
from kubediffusion.resources.queue_order import QueueKey, queue_key
from kubediffusion.resources.transitions import TERMINAL

LONGEST_PLAIN = 2048
"""Bytes of a text that is kept as it is; to compress a shorter one saves little."""

KEPT_ANNOTATIONS = (meta.OUTPUT_ENCODING_ANNOTATION, meta.PREDICTIONS_URL_ANNOTATION)
"""What a job keeps for the door that it came in by."""

Headers = list[tuple[bytes, bytes]]
"""HTTP headers as ASGI has them, their names in lower case."""


class AgeKey(NamedTuple):
    """Orders jobs by age; ``created`` is in seconds since the epoch."""

    created: float
    name: str


@dataclass(slots=True, frozen=True)
class StoredImage:
    """One image in storage: the fields of the status's image that the API answers from, under their names there."""

    index: int
    uri: str
    sha256: str
    bytes: int
    width: int
    height: int
    flagged: bool

    @classmethod
    def of(cls, image: Image) -> Self:
        """Keep an image of a job's status."""
        return cls(**{name: getattr(image, name) for name in cls.__slots__})


@dataclass(slots=True)
class CachedJob:
    """One job at one resource version.

    Attributes:
        created: Seconds since the epoch.
        client: Name of the API key that the job was created with; None where there was none.
        packed_prompt: The prompt in UTF-8, compressed where it is long.
        labels: The labels of the object, by key.
        packed_document: The :attr:`document`, compressed where it is long.
        digest: CRC-32 of spec and status: two versions that differ in their metadata alone have the same.
        changed: The version since which spec and status are so, as far as this process has seen it.
        result: Headers and body of the response of ``GET /results``, kept once it has been asked for; see
            :mod:`kubediffusion.api.job_cache.results`.
    """

    name: str
    uid: str
    version: int
    created: float
    phase: Phase
    model: str | None
    packed_prompt: bytes
    priority: int
    suspended: bool
    client: str | None
    worker: str | None
    progress: str | None
    images: tuple[StoredImage, ...]
    error_code: str | None
    error_message: str | None
    warnings: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    packed_document: bytes
    digest: int
    changed: int
    result: tuple[Headers, bytes] | None = None

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> Self:
        """Parse a GenerationJob of the API server.

        Raises:
            pydantic.ValidationError: The object is no GenerationJob.
        """
        job = GenerationJob.from_wire(body)
        metadata, spec, status = job.metadata, job.spec, job.status
        described, content = _document(body)
        return cls(
            name=metadata.name,
            uid=metadata.uid,
            version=metadata.version,
            created=metadata.creation_timestamp.timestamp() if metadata.creation_timestamp else 0.0,
            phase=status.phase,
            model=spec.model,
            packed_prompt=_packed(spec.prompt.encode()),
            priority=spec.priority or 0,
            suspended=bool(spec.suspend),
            client=metadata.annotations.get(meta.CLIENT_ANNOTATION),
            worker=status.worker,
            progress=status.progress.summary if status.progress else None,
            images=tuple(map(StoredImage.of, sorted(status.images, key=attrgetter("index")))),
            error_code=status.error.code if status.error else None,
            error_message=status.error.message if status.error else None,
            warnings=status.warnings,
            labels=tuple(sorted(metadata.labels.items())),
            packed_document=_packed(described + content),
            digest=zlib.crc32(content, zlib.crc32(spec.prompt.encode())),
            changed=metadata.version,
        )

    @property
    def prompt(self) -> str:
        """The prompt."""
        return _unpacked(self.packed_prompt).decode()

    @property
    def document(self) -> bytes:
        """``metadata``, ``spec`` without the prompt, and ``status`` as JSON, for the detailed view."""
        return _unpacked(self.packed_document)

    @property
    def finished(self) -> bool:
        """Whether the job is in a terminal phase."""
        return self.phase in TERMINAL

    @property
    def age_key(self) -> AgeKey:
        """The place of the job among all jobs by age."""
        return AgeKey(self.created, self.name)

    @property
    def queue_key(self) -> QueueKey[float] | None:
        """The place of the job among those that wait; None when it does not wait for a worker."""
        if self.phase is not Phase.PENDING or self.suspended:
            return None
        return queue_key(self.priority, self.created, self.name)

    def parse(self) -> GenerationJob:
        """Parse the whole job from its document."""
        body = json.loads(self.document)
        body["spec"]["prompt"] = self.prompt
        return GenerationJob.from_wire(body)


class _Compressed(bytes):
    """A text that is compressed."""

    __slots__ = ()


def _packed(text: bytes) -> bytes:
    return text if len(text) <= LONGEST_PLAIN else _Compressed(zlib.compress(text, 1))


def _unpacked(packed: bytes) -> bytes:
    return zlib.decompress(packed) if isinstance(packed, _Compressed) else packed


def _document(body: dict[str, Any]) -> tuple[bytes, bytes]:
    """Serialise what is kept of a job: its metadata, then its spec and status, which together are one object."""
    # Annotations and managedFields repeat the spec, and nothing here shows them; but for two.
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")
    metadata = {key: value for key, value in body["metadata"].items() if key in kept}
    annotations = body["metadata"].get("annotations") or {}
    if noted := {key: annotations[key] for key in KEPT_ANNOTATIONS if key in annotations}:
        metadata["annotations"] = noted
    spec = {key: value for key, value in body["spec"].items() if key != "prompt"}
    content = {"spec": spec, "status": body.get("status", {})}
    return b'{"metadata":' + _json(metadata) + b",", _json(content)[1:]


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


PAGE_SIZE = 25
"""Jobs asked for at once: each may have some 260 KiB of annotations, and all of a page is in memory, several times over
while it is parsed. With 1,000 jobs of 230 KiB a replica took 760 MiB while it started at 500."""


class JobRecord(KubernetesObject):
    """A GenerationJob as the typed client returns it to this process: the cached job, and what the Reflector needs."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    job: CachedJob

    @classmethod
    def from_wire(cls, body: Any) -> Self:
        """Parse an object of the API server.

        Raises:
            pydantic.ValidationError: The object is no GenerationJob.
        """
        job = CachedJob.from_wire(body)
        metadata = ObjectMeta(name=job.name, uid=job.uid, resource_version=str(job.version))
        return cls(metadata=metadata, job=job)
