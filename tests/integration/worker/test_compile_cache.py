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

import pytest

from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.worker.compiled import Bucket, Keeper, fetch
from kubediffusion.worker.pipeline.artifacts import unpack

PROGRAM = Path(__file__).with_name("compiling_process.py")
NAME = "revision/device_dtype/versions.zip"


@pytest.fixture
def uri(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of storage, and the environment to reach it by."""
    for name, value in cluster.store.settings.items():
        monkeypatch.setenv(name, value)
    prefix = f"compiled-{os.getpid()}"
    yield f"s3://{installation.BUCKET}/{prefix}"
    with closing(cluster.store.client()) as client:
        client.delete_object(Bucket=installation.BUCKET, Key=f"{prefix}/{NAME}")


def compiles(uri: str, own_cache: Path, *sizes: int) -> dict[str, Any]:
    """Run a process that shares nothing with others but storage."""
    ended = subprocess.run(
        [sys.executable, PROGRAM, uri, *map(str, sizes)],
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
    first = compiles(uri, tmp_path / "1", 3)
    assert (first["hits"], first["misses"], first["kept"]) == (0, 1, 1)
    # It has no use for what the first compiled, and hands it on.
    second = compiles(uri, tmp_path / "2", 5)
    assert (second["hits"], second["misses"], second["kept"]) == (0, 1, 1)
    third = compiles(uri, tmp_path / "3", 3, 5, 7)
    # What was found is not written again; what is new is.
    assert (third["hits"], third["misses"], third["kept"]) == (2, 1, 1)
    # It used everything, so its own is the whole.
    assert len(unpack(Bucket(uri).get(NAME) or b"")) == 1


def test_what_a_process_saved_at_several_times_is_loaded_as_a_whole(tmp_path: Path) -> None:
    # As a worker does: it saves when its step is compiled, and again when its decoder is.
    place = str(tmp_path / "place")
    first = compiles(place, tmp_path / "1", 3, 5)
    assert (first["hits"], first["misses"], first["kept"]) == (0, 2, 2)
    second = compiles(place, tmp_path / "2", 3, 5)
    assert (second["hits"], second["misses"], second["kept"]) == (2, 0, 0)


def test_an_object_is_there_whole_or_not_at_all_and_the_last_writer_wins(uri: str) -> None:
    place = Bucket(uri)
    assert place.get(NAME) is None
    place.put(NAME, b"one")
    place.put(NAME, b"two")
    assert place.get(NAME) == b"two"


def test_storage_that_refuses_costs_a_log_line(
    uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-key")
    assert fetch(lambda: Bucket(uri), NAME) is None
    keeper = Keeper(lambda: Bucket("s3://there-is-no-such-bucket/folder"), NAME)
    keeper.keep(b"one")
    assert not keeper.settled(0)
    assert "the compile cache cannot be read" in caplog.text
    assert "not-the-key" not in caplog.text
