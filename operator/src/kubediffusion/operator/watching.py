"""How the cluster is watched: kopf is set up to write nothing of its own, and GenerationJobs go past it.

kopf makes a task, loggers and a dozen arguments for each event. For models and workers that is no matter; of a job's
three events it made half of the operator's processor time, and it never tells of a job that was deleted while the
watch was broken.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import kopf

from kubediffusion.operator.slim_jobs import slim_jobs
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.apiserver.rest import RestClient
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobSpec, GenerationJobStatus
from kubediffusion.resources.objects import ObjectMeta

logger = logging.getLogger(__name__)

INACTIVITY_SECONDS = 90.0
"""A watch without any byte for so long is dead: bookmarks come every minute."""

_NOTHING = kopf.BodyEssence()


class EndlessBackoffs:
    """Seconds between the tries of a request, without an end: where they run out kopf gives a watch up for good.

    A namespace whose RoleBinding was deleted is watched again once that is back.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0), itertools.repeat(21.0))


class NoDiffBase(kopf.DiffBaseStorage):
    """Remembers no last handled state: no handler asks what has changed.

    kopf would copy each object it is told of, to compare: most of its cost in a burst.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return nothing to compare."""
        return _NOTHING

    def fetch(self, **_: Any) -> None:
        """Return nothing to compare with."""

    def store(self, **_: Any) -> None:
        """Write nothing."""


class NoProgress(kopf.ProgressStorage):
    """Remembers no handler's progress: none of them is ever tried again."""

    def fetch(self, **_: Any) -> None:
        """Return no progress."""

    def store(self, **_: Any) -> None:
        """Write nothing."""

    def purge(self, **_: Any) -> None:
        """Write nothing."""

    def touch(self, **_: Any) -> None:
        """Write nothing."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """Leave as it is what holds no progress."""
        return essence


def configure_kopf(registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings, client: KubernetesClient) -> None:
    """Set kopf up.

    Args:
        registry: kopf's registry, for the login.
        settings: kopf's settings, changed in place.
        client: Whose address and credentials kopf uses too.
    """
    # One replica with strategy Recreate: there is no peer, and no peering object to be permitted to write.
    settings.peering.standalone = True
    # What exists at the start is what there is: no permission to list namespaces or CRDs is needed.
    settings.scanning.disabled = True
    # Events are written by events.py; kopf's own would be one for each line of its log.
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.watching.label_selectors["batch", "v1", "jobs"] = meta.WORKER_SELECTOR
    settings.watching.label_selectors["", "v1", "pods"] = meta.WORKER_SELECTOR
    settings.watching.chunk_size = 500
    settings.watching.inactivity_timeout = INACTIVITY_SECONDS
    settings.networking.request_timeout = 30.0
    settings.networking.error_backoffs = EndlessBackoffs()
    # After a burst each idle object would keep a task for seconds.
    settings.queueing.idle_timeout = 0.5
    # Each handler call is a line at INFO: a visible cost in a burst.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)

    @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.TEMPORARY)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        configuration = client.configuration
        header = await configuration.get_api_key_with_prefix("BearerToken") or ""
        scheme, token = header.rpartition(" ")[::2]
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            scheme=scheme.capitalize() or "Bearer",
            token=token or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
        )


_NO_SPEC = GenerationJobSpec(prompt="-")
_NO_STATUS = GenerationJobStatus()


def watch_jobs(
    client: RestClient,
    namespace: str | None,
    observe: Callable[[GenerationJob, bool], None],
    seen: Iterable[GenerationJob] = (),
) -> Reflector[GenerationJob]:
    """Return the watch of GenerationJobs.

    Args:
        client: The connection.
        namespace: Where; None for all namespaces.
        observe: Told of each job, and whether it is gone; of one that is, metadata alone count. It must not raise.
        seen: Jobs of an earlier list: those that are deleted before the watch begins are told too.
    """
    return Reflector(slim_jobs(client), namespace, observe, remember=_identity, seen=seen)


def _identity(job: GenerationJob) -> GenerationJob:
    """Return a job without what its deletion need not tell: very many may have finished."""
    known = job.metadata
    metadata = ObjectMeta(
        name=known.name, namespace=known.namespace, uid=known.uid, resource_version=known.resource_version
    )
    return job.model_copy(update={"metadata": metadata, "spec": _NO_SPEC, "status": _NO_STATUS})
