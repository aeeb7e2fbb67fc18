"""Storage fences attempts as status does, on a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.resources.failures import JobFailure
from kubediffusion.resources.storage import ImageStorage, StorageError, SupersededError
from kubediffusion.worker.uploads import Uploader


@pytest.fixture
def storage(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageStorage]:
    for name, value in cluster.store.settings.items():
        monkeypatch.setenv(name, value)
    images = ImageStorage(installation.BUCKET)
    yield images
    images.close()


def test_a_retry_overwrites_and_a_zombie_does_not(storage: ImageStorage) -> None:
    uri = storage.put("fence.png", b"first", 1)
    assert storage.put("fence.png", b"third", 3) == uri
    with pytest.raises(SupersededError):
        storage.put("fence.png", b"second", 2)
    assert storage.get(uri) == b"third"
    # The same attempt, whose first confirmation was lost.
    storage.put("fence.png", b"third again", 3)
    assert storage.get(uri) == b"third again"
    # An image that is gone can be written by anybody.
    storage.delete(uri)
    storage.put("fence.png", b"late", 1)
    assert storage.get(uri) == b"late"
    storage.delete(uri)


def test_of_many_writers_the_latest_attempt_stays(storage: ImageStorage) -> None:
    def put(attempt: int) -> None:
        try:
            storage.put("race.png", str(attempt).encode(), attempt)
        except (SupersededError, StorageError):
            assert attempt < last

    last = 8
    with ThreadPoolExecutor(last) as writers:
        list(writers.map(put, range(1, last)))
    put(last)
    assert storage.get(storage.uri("race.png")) == str(last).encode()
    storage.delete(storage.uri("race.png"))


async def test_a_bucket_that_does_not_exist_fails_the_job(
    storage: ImageStorage, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.store.settings.items():
        monkeypatch.setenv(name, value)
    nowhere = ImageStorage("no-such-bucket")
    with ThreadPoolExecutor(1) as threads, pytest.raises(JobFailure) as failure:
        await Uploader(nowhere, threads).put("x.png", b"x", 1, lambda _: None)
    nowhere.close()
    assert failure.value.code == "StorageFailed"
