"""Keeps compiled code between workers, in a folder or in S3-compatible storage; imports no torch.

What is stored there is run by whoever loads it, so only workers of one trust may write to one store: see SECURITY.md.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import logging
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from kubediffusion.resources.s3 import make_client
from kubediffusion.worker.settings import Settings

logger = logging.getLogger(__name__)

_MISSING = frozenset({"NoSuchKey", "404"})

_NOT_KEPT = (
    "the compile cache cannot be written: %s; until it can, workers to come compile anew: "
    "let workers write to the claim or folder that spec.compileCache of the DiffusionModel names"
)

FIRST_PAUSE = 5.0
"""Seconds after which a write that failed is tried again; each further failure doubles it."""

LONGEST_PAUSE = 600.0

LAST_WAIT = 30.0
"""Seconds that a process which ends by itself waits for a write."""


_DIGEST = hashlib.sha256().digest_size


class CacheStore(Protocol):
    """Stores bytes by name: each write is atomic, and the last writer wins.

    Both methods block, and raise OSError, ClientError or BotoCoreError.
    """

    def get(self, name: str) -> bytes | None:
        """Return the bytes of a name; None without any."""

    def put(self, name: str, data: bytes) -> None:
        """Write the bytes of a name."""


class FolderStore:
    """A store in a folder, which workers of several machines may share.

    Args:
        folder: It need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> bytes | None:
        """Read a file: see :class:`CacheStore`."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write a file: see :class:`CacheStore`."""
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{uuid.uuid4()}.part")
        try:
            part.write_bytes(data)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


class S3Store:
    """A store in a folder of S3-compatible storage, reached by the worker's own AWS settings.

    Args:
        uri: s3://bucket/folder.
        endpoint: Address of the server, where it is not the one of the AWS settings.
    """

    def __init__(self, uri: str, endpoint: str | None = None) -> None:
        parts = urlsplit(uri)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._client = make_client(endpoint=endpoint)

    def get(self, name: str) -> bytes | None:
        """Read an object: see :class:`CacheStore`."""
        try:
            return self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")["Body"].read()
        except ClientError as error:
            if error.response["Error"].get("Code") in _MISSING:
                return None
            raise

    def put(self, name: str, data: bytes) -> None:
        """Write an object: see :class:`CacheStore`."""
        self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}", Body=data)


def store_factory(settings: Settings) -> Callable[[], CacheStore] | None:
    """Return a function that makes the store which the model names; None where it names none."""
    chosen = settings.spec.compile_cache
    if chosen is not None and chosen.s3 is not None:
        return partial(S3Store, chosen.s3.uri)
    return partial(FolderStore, settings.compile_cache_path) if settings.compile_cache_path is not None else None


def cache_key(revision: str, device: str, dtype: str, versions: dict[str, str]) -> str:
    """Return the folder for one model revision, kind of device, dtype and set of versions.

    The driver's version is not among them: the code is made for the device by a compiler that comes with the libraries.
    """
    parts = (revision, f"{device}_{dtype}", "_".join(f"{name}-{version}" for name, version in sorted(versions.items())))
    clean = ("".join(letter if letter.isalnum() or letter in ".-_" else "-" for letter in part) for part in parts)
    return "/".join(clean)


class CompiledCodeCache:
    """Reads what workers compiled for the same model, device and versions, and writes what is new.

    Errors of storage are logged and cost time only. A thread of its own writes, and nobody waits for it. A process that
    ends by itself lets it finish a write under way; a worker does not.

    Args:
        make_store: Makes the store, when it is first needed.
        folder: Folder of the store, of :func:`cache_key`.
        first_pause: Seconds before the first retry of a write that failed; each further failure doubles it.
    """

    def __init__(self, make_store: Callable[[], CacheStore], folder: str, first_pause: float = FIRST_PAUSE) -> None:
        self._make_store = make_store
        self._folder = folder
        self._first_pause = first_pause
        self._store: CacheStore | None = None
        self._opening = threading.Lock()
        self._unreadable_until = 0.0
        # By name, in the order in which they came; of one name the newest.
        self._unwritten: dict[str, list[bytes]] = {}
        self._writing = False
        self._failing = False
        self._changed = threading.Condition()
        atexit.register(self._finish)
        threading.Thread(target=self._run, name="keep-compiled", daemon=True).start()

    def get(self, name: str) -> list[bytes]:
        """Return the parts that an earlier worker stored by a name; none where nothing can be read.

        Blocks for as long as storage may take; where it did not answer, it is not asked again for ``LONGEST_PAUSE``.
        """
        began = time.monotonic()
        if began < self._unreadable_until:
            return []
        try:
            data = self._open_store().get(f"{self._folder}/{name}")
        except (OSError, ClientError, BotoCoreError, ValueError) as error:
            logger.warning("the compile cache cannot be read: %s", error)
            self._unreadable_until = time.monotonic() + LONGEST_PAUSE
            return []
        try:
            parts = [] if data is None else unpack(data)
        except ValueError as error:
            logger.warning("an entry of the compile cache is broken: %s", error, extra={"entry": name})
            return []
        logger.info(
            "nobody has compiled this yet" if data is None else "compiled code fetched",
            extra={"entry": name, "bytes": len(data or b""), "seconds": round(time.monotonic() - began, 3)},
        )
        return parts

    def put(self, name: str, parts: list[bytes]) -> None:
        """Write parts by a name, later; they replace what still waits to be written by that name."""
        with self._changed:
            self._unwritten[name] = parts
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until all is written, for ``timeout`` seconds at most, and return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._unwritten and not self._writing, timeout)

    def _open_store(self) -> CacheStore:
        with self._opening:
            if self._store is None:
                self._store = self._make_store()
            return self._store

    def _finish(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failing or not (self._unwritten or self._writing), LAST_WAIT)

    def _run(self) -> None:
        pause = self._first_pause
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._unwritten))
                name = next(iter(self._unwritten))
                parts, self._writing = self._unwritten.pop(name), True
            failed = not self._write(name, parts, first=pause == self._first_pause)
            with self._changed:
                self._writing, self._failing = False, failed
                if failed:
                    self._unwritten.setdefault(name, parts)
                self._changed.notify_all()
            if failed:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = self._first_pause

    def _write(self, name: str, parts: list[bytes], *, first: bool) -> bool:
        began, data = time.monotonic(), pack(parts)
        try:
            self._open_store().put(f"{self._folder}/{name}", data)
        except (OSError, ClientError, BotoCoreError, ValueError) as error:
            # Once for each outage: the rest would say the same.
            logger.log(logging.WARNING if first else logging.DEBUG, _NOT_KEPT, error)
            return False
        seconds = round(time.monotonic() - began, 3)
        logger.info("compiled code kept", extra={"entry": name, "bytes": len(data), "seconds": seconds})
        return True


def pack(parts: list[bytes]) -> bytes:
    """Return one file of several parts: a ZIP archive after its SHA-256, as the archive's own checksums miss damage."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, part in enumerate(parts):
            archive.writestr(str(number), part)
    data = file.getvalue()
    return hashlib.sha256(data).digest() + data


def unpack(packed: bytes) -> list[bytes]:
    """Return the parts of what :func:`pack` made.

    Raises:
        ValueError: It is no such file, or was changed.
    """
    digest, data = packed[:_DIGEST], packed[_DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        raise ValueError("its content is not what its checksum says")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [archive.read(name) for name in archive.namelist()]
