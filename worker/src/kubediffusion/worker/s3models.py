"""Downloads a model's folder from S3.

A folder appears under its final name only when every file is there in full size, so a worker that died while
downloading leaves nothing that a later one would load.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from kubediffusion.resources.s3 import is_refusal, make_client
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.sources import ModelRefusedError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


class DownloadError(Exception):
    """The model could not be fetched this time."""


@dataclass(frozen=True)
class _File:
    key: str
    name: str
    size: int
    etag: str


def fetch(
    uri: str,
    cache_dir: Path,
    patterns: tuple[str, ...] = (),
    accept: Callable[[int], None] = lambda _: None,
    *,
    read_timeout: float = 60.0,
    attempts: int = 5,
) -> Path:
    """Return the local copy of the folder ``s3://bucket/prefix``, after downloading it unless it is there.

    Args:
        uri: The folder in S3.
        cache_dir: Folder of the copies, each under a hash of its listing.
        patterns: Of the files that are wanted, as ``fnmatch`` has them; all where there are none.
        accept: Told their bytes before they are downloaded; raises what refuses them.
        read_timeout: Seconds without a byte of an answer after which a request has failed.
        attempts: How often a request is sent in all.

    Raises:
        BadModelError: A key leads out of the folder.
        ModelRefusedError: There is no such bucket or folder, the worker may not read it, or its settings are wrong.
        DownloadError: Storage did not answer, or the folder changed meanwhile; another try may help.
    """
    with _client_for(uri, read_timeout, attempts) as client:
        return _fetch(client, uri, cache_dir, patterns, accept)


def list_files(uri: str) -> list[str]:
    """Return the names of the files in the folder ``s3://bucket/prefix``, by their paths within it.

    Raises:
        BadModelError: A key leads out of the folder.
        ModelRefusedError: There is no such bucket, the worker may not read it, or its settings are wrong.
        DownloadError: Storage did not answer; another try may help.
    """
    with _client_for(uri, read_timeout=60.0, attempts=5) as client:
        parts = urlsplit(uri)
        return [file.name for file in _listing(client, parts.netloc, parts.path.strip("/") + "/")]


@contextlib.contextmanager
def _client_for(uri: str, read_timeout: float, attempts: int) -> Iterator[S3Client]:
    """Open a client whose errors say what cannot be read, and whether another try may help."""
    client = make_client(read_timeout=read_timeout, attempts=attempts)
    try:
        yield client
    except (ClientError, BotoCoreError) as error:
        if is_refusal(error):
            raise ModelRefusedError(f"cannot read {uri}: {_answer_of(error)}") from None
        raise DownloadError(f"cannot read {uri}: {_answer_of(error)}") from error
    finally:
        client.close()


def _answer_of(error: ClientError | BotoCoreError) -> str:
    """Return what storage answered, code and message, or what is wrong."""
    if not isinstance(error, ClientError):
        return str(error)
    answer = error.response["Error"]
    return f"{answer.get('Code', '')} {answer.get('Message', '')}".strip()


def _fetch(
    client: S3Client, uri: str, cache_dir: Path, patterns: tuple[str, ...], accept: Callable[[int], None]
) -> Path:
    parts = urlsplit(uri)
    files = _listing(client, parts.netloc, parts.path.strip("/") + "/")
    if patterns:
        files = [file for file in files if any(fnmatchcase(file.name, pattern) for pattern in patterns)]
    if not files:
        raise ModelRefusedError(f"{uri} holds no files" + (f" that match {', '.join(patterns)}" if patterns else ""))
    accept(sum(file.size for file in files))
    digest = hashlib.sha256(uri.encode())
    for file in files:
        digest.update(f"\0{file.name}\0{file.size}\0{file.etag}".encode())
    folder = cache_dir / digest.hexdigest()[:32]
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache_dir))
    try:
        for file in files:
            target = partial / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(parts.netloc, file.key, str(target))
            if target.stat().st_size != file.size:
                raise DownloadError(f"{file.key} changed while it was downloaded")
        try:
            partial.rename(folder)
        except OSError:
            # Another worker of this machine was faster; its folder holds the same.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _listing(client: S3Client, bucket: str, prefix: str) -> list[_File]:
    files = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            name = item["Key"].removeprefix(prefix)
            if not name or name.endswith("/"):
                continue  # a folder's own marker
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise BadModelError(f"the key {item['Key']!r} leads out of the model's folder")
            files.append(_File(item["Key"], name, item["Size"], item["ETag"]))
    return sorted(files, key=lambda file: file.name)
