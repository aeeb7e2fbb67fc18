"""Where compiled code outlives the process that made it: a folder, or a folder of S3-compatible storage. No torch.

What lies there is run by whoever loads it, so only workers of one trust may write to one place: see SECURITY.md.
"""

from __future__ import annotations

import atexit
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from threading import Condition, Thread
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from kubediffusion.worker.settings import Settings
from kubediffusion.worker.starting import cache_folder

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

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


class Place(Protocol):
    """Keeps bytes by name. Whole or not at all, and the last writer wins.

    Both methods block, and raise OSError, ClientError or BotoCoreError.
    """

    def get(self, name: str) -> bytes | None:
        """Read what is there; None where nothing is."""

    def put(self, name: str, data: bytes) -> None:
        """Write it."""


class Folder:
    """A folder, which workers of several machines may share.

    Args:
        folder: It need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> bytes | None:
        """Read a file: see :class:`Place`."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write a file: see :class:`Place`."""
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{uuid.uuid4()}.part")
        try:
            part.write_bytes(data)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


class Bucket:
    """A folder of S3-compatible storage, reached by the worker's own AWS settings.

    Args:
        uri: s3://bucket/folder.
        endpoint: Address of the server, where it is not the one of the AWS settings.
    """

    def __init__(self, uri: str, endpoint: str | None = None) -> None:
        parts = urlsplit(uri)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        config = Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 3, "mode": "standard"})
        self._client: S3Client = boto3.session.Session().client("s3", config=config, endpoint_url=endpoint)

    def get(self, name: str) -> bytes | None:
        """Read an object: see :class:`Place`."""
        try:
            return self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")["Body"].read()
        except ClientError as error:
            if error.response["Error"].get("Code") in _MISSING:
                return None
            raise

    def put(self, name: str, data: bytes) -> None:
        """Write an object: see :class:`Place`."""
        self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}", Body=data)


def place_of(settings: Settings) -> Place:
    """Choose where compiled code is kept: where the model says, or beside the worker, gone with its Pod."""
    chosen = settings.spec.compile_cache
    if chosen is not None and chosen.s3 is not None:
        return Bucket(chosen.s3.uri)
    return Folder(settings.compile_cache_path or cache_folder(settings) / "compiled")


def entry_name(revision: str, device: str, dtype: str, versions: dict[str, str]) -> str:
    """Name what is kept for one model revision, kind of device, dtype and set of versions.

    The driver's version is not among them: the code is made for the device by a compiler that comes with the libraries.
    """
    parts = (revision, f"{device}_{dtype}", "_".join(f"{name}-{version}" for name, version in sorted(versions.items())))
    clean = ("".join(letter if letter.isalnum() or letter in ".-_" else "-" for letter in part) for part in parts)
    return "/".join(clean) + ".zip"


def fetch(place: Callable[[], Place], name: str) -> bytes | None:
    """Give what an earlier worker kept; whatever goes wrong costs time only, and is said in the log."""
    began = time.monotonic()
    try:
        data = place().get(name)
    except (OSError, ClientError, BotoCoreError, ValueError) as error:
        logger.warning("the compile cache cannot be read: %s", error)
        return None
    logger.info(
        "the compile cache holds nothing yet" if data is None else "compile cache fetched",
        extra={"entry": name, "bytes": len(data or b""), "seconds": round(time.monotonic() - began, 3)},
    )
    return data


class Keeper:
    """Writes the newest of what it is given, in a thread of its own: nobody waits for storage.

    A process that ends by itself lets it finish what it has begun; a worker does not.

    Args:
        place: Makes the place; called in that thread.
        name: Of what is written.
        first_pause: Seconds before a write that failed is tried again for the first time.
    """

    def __init__(self, place: Callable[[], Place], name: str, first_pause: float = FIRST_PAUSE) -> None:
        self._place = place
        self._name = name
        self._first_pause = first_pause
        self._newest: bytes | None = None
        self._writing = False
        self._failing = False
        self._changed = Condition()
        atexit.register(self._finish)
        Thread(target=self._run, name="keep-compiled", daemon=True).start()

    def keep(self, data: bytes) -> None:
        """Have it written; what waits to be written is forgotten for it."""
        with self._changed:
            self._newest = data
            self._changed.notify_all()

    def settled(self, timeout: float) -> bool:
        """Wait until all is written; False when it is not after so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._newest is None and not self._writing, timeout)

    def _finish(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failing or (self._newest is None and not self._writing), LAST_WAIT)

    def _run(self) -> None:
        pause = self._first_pause
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None)
                data, self._newest, self._writing = self._newest, None, True
            failed = data is not None and not self._write(data, first=pause == self._first_pause)
            with self._changed:
                self._writing, self._failing = False, failed
                if failed and self._newest is None:
                    self._newest = data
                self._changed.notify_all()
            if failed:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = self._first_pause

    def _write(self, data: bytes, *, first: bool) -> bool:
        began = time.monotonic()
        try:
            self._place().put(self._name, data)
        except (OSError, ClientError, BotoCoreError, ValueError) as error:
            # Once for each outage: the rest would say the same.
            logger.log(logging.WARNING if first else logging.DEBUG, _NOT_KEPT, error)
            return False
        seconds = round(time.monotonic() - began, 3)
        logger.info("compile cache kept", extra={"entry": self._name, "bytes": len(data), "seconds": seconds})
        return True
