"""Compiled code outlives its process, by a real S3 server and PyTorch's own compiler, which on the CPU is C++."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import wait_for
from kubediffusion.worker.compile_cache import CompiledCodeCache, FolderStore, S3Store, pack
from kubediffusion.worker.execution.compile import artifacts

PROGRAM = Path(__file__).with_name("compiling_process.py")
FOLDER = "revision/device_dtype/versions"
NAME = f"{FOLDER}/a.zip"


@pytest.fixture
def uri(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of storage, and the environment to reach it by."""
    for name, value in cluster.store.settings.items():
        monkeypatch.setenv(name, value)
    prefix = f"compiled-{os.getpid()}"
    yield f"s3://{installation.BUCKET}/{prefix}"
    with closing(cluster.store.client()) as client:
        for found in client.list_objects_v2(Bucket=installation.BUCKET, Prefix=f"{prefix}/").get("Contents", []):
            client.delete_object(Bucket=installation.BUCKET, Key=found["Key"])


def compiles(uri: str, own_cache: Path, *sizes: int, way: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run a process that shares storage with others; what PyTorch keeps by itself, with those of the same cache."""
    ended = subprocess.run(
        [sys.executable, PROGRAM, uri, *map(str, sizes), *way],
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(own_cache)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert found["same"]
    assert found["settled"]
    return found


def test_a_process_starts_from_what_others_compiled(uri: str, tmp_path: Path) -> None:
    first = compiles(uri, tmp_path, 3)
    assert (first["traced"], first["kept"]) == (1, 1)
    # What was found is neither traced nor written again; what is new is.
    second = compiles(uri, tmp_path, 3, 5)
    assert (second["traced"], second["kept"]) == (1, 1)
    kept = S3Store(uri)
    with closing(boto3.client("s3")) as client:
        found = client.list_objects_v2(Bucket=installation.BUCKET, Prefix=f"{urlsplit(uri).path[1:]}/")["Contents"]
    assert len(found) == 2
    for entry in found:
        kept.put(f"{FOLDER}/{Path(entry['Key']).name}", pack([b"no function"]))
    # What cannot be used is compiled anew, and replaced.
    third = compiles(uri, tmp_path, 3)
    assert (third["traced"], third["kept"]) == (1, 1)


def test_a_pipelines_own_call_starts_from_what_others_compiled_too(tmp_path: Path) -> None:
    place, way = str(tmp_path / "place"), ("--artifacts",)
    # It saves after each batch of a new kind.
    first = compiles(place, tmp_path / "1", 3, 5, way=way)
    assert (first["hits"], first["misses"], first["kept"]) == (0, 2, 2)
    # It has no use for what the first compiled, and hands it on.
    second = compiles(place, tmp_path / "1", 7, way=way)
    assert (second["hits"], second["misses"], second["kept"]) == (0, 1, 1)
    third = compiles(place, tmp_path / "2", 3, 5, 7, way=way)
    assert (third["hits"], third["misses"]) == (3, 0)
    assert len(CompiledCodeCache(lambda: FolderStore(Path(place)), FOLDER).get(artifacts.NAME)) == 2


def test_an_object_is_there_whole_or_not_at_all_and_the_last_writer_wins(uri: str) -> None:
    place = S3Store(uri)
    assert place.get(NAME) is None
    place.put(NAME, b"one")
    place.put(NAME, b"two")
    assert place.get(NAME) == b"two"


def test_storage_that_refuses_costs_a_log_line(
    uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = "s3://there-is-no-such-bucket/folder"
    missing = CompiledCodeCache(lambda: S3Store(bucket), FOLDER)
    missing.put("a.zip", [b"one"])
    wait_for("the write to be refused", lambda: "NoSuchBucket" in caplog.text)
    assert not missing.flush(0)
    assert caplog.text.count("the compile cache cannot be written") == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-key")
    assert CompiledCodeCache(lambda: S3Store(uri), FOLDER).get("a.zip") == []
    assert caplog.text.count("the compile cache cannot be read") == 1
    assert "SignatureDoesNotMatch" in caplog.text
    assert "not-the-key" not in caplog.text
