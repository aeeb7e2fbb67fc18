"""Images go with their job, from real storage, also after it was away."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from functools import partial

import pytest

from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.events import EventRecorder
from kubediffusion.operator.image_releases import AT_ONCE, ImageReleases, ReleasePauses
from kubediffusion.operator.images import ImageRemover
from kubediffusion.operator.manifests import WorkerDefaults
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Image, Phase
from kubediffusion.resources.image_keys import image_key
from kubediffusion.resources.schema import format_time
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


async def test_images_go_from_wherever_the_status_names_them(
    storage: ImageStorage, client: KubernetesClient, namespace: Namespace
) -> None:
    """The bucket or the prefix may have been another when they were made."""
    moved = finished("moved")
    key = image_key("before", moved.metadata.namespace, moved.uid, 0)
    storage.put(key, b"png", 1)
    image = Image(index=0, uri=storage.uri(key), sha256="0" * 64, bytes=3, width=8, height=8, seed=1)
    named = moved.model_copy(update={"status": moved.status.model_copy(update={"images": (image,)})})
    assert await ImageRemover(storage, PREFIX).remove(named) == ""
    assert not stored(storage, key)


async def test_a_bucket_that_is_gone_holds_no_image(storage: ImageStorage) -> None:
    gone = ImageStorage("no-such-bucket")
    try:
        assert await ImageRemover(gone, PREFIX).remove(finished("none")) == ""
    finally:
        gone.close()


class DenyingStorage(ImageStorage):
    """Real storage whose policy denies one prefix."""

    denied = ""

    def delete(self, uri: str) -> None:
        if self.denied and f"/{self.denied}/" in uri:
            raise StorageError(f"cannot delete {uri}: AccessDenied")
        super().delete(uri)


async def deleted(client: KubernetesClient, namespace: Namespace, name: str) -> GenerationJob:
    """Create a job that has ended, was deleted, and is held for its images."""
    body = {
        "apiVersion": meta.API_VERSION,
        "kind": "GenerationJob",
        "metadata": {"name": name, "finalizers": [meta.IMAGES_FINALIZER]},
        "spec": {"prompt": "a fox"},
    }
    await client.generation_jobs.create(namespace.name, body)
    status = {"phase": Phase.CANCELLED, "completionTime": format_time(dt.datetime.now(dt.UTC))}
    await client.generation_jobs.patch(namespace.name, name, {"status": status}, subresource="status")
    await client.generation_jobs.delete(namespace.name, name)
    return await client.generation_jobs.get(namespace.name, name)


async def test_images_that_may_not_be_deleted_hold_their_own_jobs_alone_which_say_so(
    cluster: LocalCluster,
    storage: ImageStorage,
    client: KubernetesClient,
    namespace: Namespace,
) -> None:
    other = Namespace(cluster, f"{namespace.name}-other")
    other.create()
    recorder = EventRecorder(client, "test")
    denying = DenyingStorage(installation.BUCKET)
    denying.denied = namespace.name
    defaults = WorkerDefaults(image="none", service_account="default", port=8080, s3_secret="none", log_level="INFO")
    api = Cluster(client, [namespace.name, other.name], defaults, 4)
    release = ImageReleases(api, ImageRemover(denying, PREFIX), recorder, pauses=ReleasePauses(0.2, 0.5))
    # More than are released at the same time.
    for number in range(3 * AT_ONCE):
        release.add(await deleted(client, namespace, f"held-{number}"))
    release.add(await deleted(client, other, "free"))
    tasks = [asyncio.create_task(work) for work in (*(release.release_all() for _ in range(AT_ONCE)), recorder.run())]
    try:

        async def left(where: Namespace, count: int) -> bool:
            return len((await client.generation_jobs.list(where.name))[0]) == count

        await eventually("the other namespace's job to go", partial(left, other, 0), 20)

        async def told() -> bool:
            jobs, _ = await client.generation_jobs.list(namespace.name)
            said = [job.metadata.annotations.get(meta.IMAGES_HELD_ANNOTATION, "") for job in jobs]
            return len(said) == 3 * AT_ONCE and all("AccessDenied" in words for words in said)

        await eventually("the held jobs to say so", told, 30)
        events = await asyncio.to_thread(namespace.list, "event.events.k8s.io")
        assert {event["reason"] for event in events if event["regarding"]["kind"] == "GenerationJob"} == {"ImagesHeld"}
        denying.denied = ""
        await eventually("the held jobs to go", partial(left, namespace, 0), 30)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        denying.close()
        other.delete()


async def test_storage_that_is_away_is_waited_out(
    cluster: LocalCluster,
    storage: ImageStorage,
    client: KubernetesClient,
    namespace: Namespace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    item = await deleted(client, namespace, "later")
    key = image_key(PREFIX, namespace.name, item.uid, 0)
    storage.put(key, b"png", 1)
    defaults = WorkerDefaults(image="none", service_account="default", port=8080, s3_secret="none", log_level="INFO")
    api = Cluster(client, [namespace.name], defaults, 4)
    recorder = EventRecorder(client, "test")
    release = ImageReleases(api, ImageRemover(storage, PREFIX), recorder, pauses=ReleasePauses(0.1))
    cluster.store.process.kill()
    release.add(item)
    task = asyncio.create_task(release.release_all())
    try:

        async def tried_twice() -> bool:
            return caplog.text.count("trying again") >= 2

        await eventually("the removal to fail and be tried again", tried_twice, 60)
        assert (await client.generation_jobs.list(namespace.name))[0]
        cluster.store.process.start()

        async def gone() -> bool:
            return not (await client.generation_jobs.list(namespace.name))[0]

        await eventually("the job to go", gone, 60)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not stored(storage, key)
