"""Images go with their job, from real storage, also after it was away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import eventually
from kubediffusion.operator import retention
from kubediffusion.operator.retention import ImageRemover
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Phase
from kubediffusion.resources.image_keys import image_key
from kubediffusion.resources.storage import ImageStorage, StorageError
from kubediffusion.resources.testing import job

PREFIX = "removal"


@pytest.fixture
def storage(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageStorage]:
    for name, value in cluster.store.settings.items():
        monkeypatch.setenv(name, value)
    opened = ImageStorage(installation.BUCKET)
    yield opened
    opened.close()


def finished(name: str) -> GenerationJob:
    return job(name, status=GenerationJobStatus(phase=Phase.FAILED), num_images=2)


def keys(item: GenerationJob) -> list[str]:
    return [image_key(PREFIX, item.metadata.namespace, item.uid, index) for index in range(2)]


def stored(storage: ImageStorage, key: str) -> bool:
    try:
        storage.get(storage.uri(key))
    except StorageError as error:
        if not error.missing:
            raise
        return False
    return True


async def test_every_image_of_the_job_goes_reported_or_not_and_no_other(storage: ImageStorage) -> None:
    gone, other = finished("gone"), finished("other")
    for key in (*keys(gone), *keys(other)):
        storage.put(key, b"png", 1)
    await ImageRemover(storage, PREFIX).remove(gone)
    assert [stored(storage, key) for key in (*keys(gone), *keys(other))] == [False, False, True, True]


async def test_a_job_without_images_is_no_trouble(storage: ImageStorage) -> None:
    await ImageRemover(storage, PREFIX).remove(finished("none"))


async def test_storage_that_is_away_is_waited_out(
    cluster: LocalCluster, storage: ImageStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retention, "FIRST_PAUSE", 0.1)
    item = finished("later")
    storage.put(keys(item)[0], b"png", 1)
    cluster.store.process.kill()
    removal = asyncio.create_task(ImageRemover(storage, PREFIX).remove(item))

    async def tried_twice() -> bool:
        return caplog.text.count("trying again") >= 2

    await eventually("the removal to fail and be tried again", tried_twice, 60)
    assert not removal.done()
    cluster.store.process.start()
    await asyncio.wait_for(removal, 60)
    assert not stored(storage, keys(item)[0])
