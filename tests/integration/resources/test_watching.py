"""The Reflector's picture equals the cluster, through every interruption."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Literal

import pytest

from integration.resources.gate import gated
from integration.resources.identities import Room, a_job
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import eventually
from kubediffusion.operator.watching import watch_jobs
from kubediffusion.resources.apiserver.errors import ConflictError, KubernetesError
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.apiserver.resource import Page, Resource
from kubediffusion.resources.apiserver.rest import RestClient
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobSpec

BASE = "/apis/kubediffusion.io/v1alpha1"


class CountingClient(RestClient):
    """The connection of another client, and how many lists went through it; a list's later pages count nothing."""

    def __init__(self, client: RestClient) -> None:
        self._client = client
        self.lists = 0

    async def request(self, method: str, path: str, **options: Any) -> Any:
        query = options.get("query") or {}
        self.lists += "limit" in query and "continue" not in query
        return await self._client.request(method, path, **options)

    def stream(self, *arguments: Any) -> AsyncGenerator[dict[str, Any], None]:
        return self._client.stream(*arguments)


class TellingPages(Resource[GenerationJob]):
    """GenerationJobs, two a page, and a call for each page that its reader has done with."""

    def __init__(self, client: RestClient, on_page_taken: Callable[[], None] = lambda: None) -> None:
        super().__init__(client, GenerationJob, BASE, "generationjobs", page_size=2)
        self._on_page_taken = on_page_taken

    async def pages(self, *arguments: Any, **selectors: Any) -> AsyncGenerator[Page[GenerationJob], None]:
        async with aclosing(super().pages(*arguments, **selectors)) as pages:
            async for page in pages:
                yield page
                self._on_page_taken()


class Picture:
    """What a Reflector told: every change in order, and what is there now."""

    def __init__(
        self,
        client: RestClient,
        namespace: str,
        kind: type[GenerationJob] = GenerationJob,
        field_selector: str = "",
        jobs: Resource[GenerationJob] | None = None,
    ) -> None:
        self.told: list[tuple[str, bool]] = []
        self.gone: list[tuple[str | None, str, str]] = []
        """Namespace, name and uid of what is told to be gone."""
        self.there: dict[str, GenerationJob] = {}
        self.client = CountingClient(client)
        jobs = jobs or Resource(self.client, kind, BASE, "generationjobs")
        self.reflector = Reflector(jobs, namespace, self.report, field_selector=field_selector)

    def report(self, job: GenerationJob, gone: bool) -> None:
        self.told.append((job.name, gone))
        if gone:
            self.gone.append((job.metadata.namespace, job.name, job.uid))
            del self.there[job.name]
        else:
            self.there[job.name] = job

    @classmethod
    def of_the_operator(cls, client: RestClient, namespace: str) -> Picture:
        """Make the picture that the operator's own watch tells, which keeps little of each job."""
        picture = cls(client, namespace)
        picture.reflector = watch_jobs(picture.client, namespace, picture.report)
        return picture

    async def shows(self, *names: str) -> None:
        async def equal() -> bool:
            return set(self.there) == set(names)

        await eventually(f"a picture of {names}, instead of {sorted(self.there)}", equal)


@asynccontextmanager
async def watching(picture: Picture) -> AsyncIterator[Picture]:
    task = asyncio.create_task(picture.reflector.run())
    try:
        await asyncio.wait_for(picture.reflector.synced.wait(), 30)
        yield picture
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_it_reports_what_is_there_and_every_change_in_order(own_room: Room) -> None:
    await own_room.create("first")
    async with watching(Picture(own_room.client, own_room.namespace)) as picture:
        assert picture.told == [("first", False)]
        second = await own_room.create("second")
        await own_room.write(own_room.client, second, phase="Cancelled")
        await own_room.client.generation_jobs.delete(own_room.namespace, "second")
        await picture.shows("first")
        await own_room.create("third")
        await picture.shows("first", "third")
    assert picture.told == [("first", False), ("second", False), ("second", False), ("second", True), ("third", False)]
    assert picture.client.lists == 1


async def test_an_empty_collection_is_a_complete_picture_too(own_room: Room) -> None:
    async with watching(Picture(own_room.client, own_room.namespace)) as picture:
        assert picture.told == []
        await own_room.create("first")
        await picture.shows("first")


async def test_what_stops_matching_a_selector_counts_as_gone(own_room: Room) -> None:
    job = await own_room.bound(own_room.client, "w-1")
    async with watching(Picture(own_room.client, own_room.namespace, field_selector="status.worker=w-1")) as picture:
        await picture.shows(job.name)
        await own_room.write(own_room.client, job, worker="w-2", attempt=2)
        await picture.shows()


async def test_pages_are_put_together(own_room: Room) -> None:
    names = [f"job-{n}" for n in range(5)]
    for name in names:
        await own_room.create(name)
    jobs = TellingPages(own_room.client)
    async with watching(Picture(own_room.client, own_room.namespace, jobs=jobs)) as picture:
        assert sorted(picture.told) == [(name, False) for name in names]


async def test_a_first_list_is_told_page_by_page(own_room: Room) -> None:
    """All of a long list at once may be a lot of memory."""
    for n in range(3):
        await own_room.create(f"job-{n}")
    told: list[int] = []
    jobs = TellingPages(own_room.client, lambda: told.append(len(picture.told)))
    picture = Picture(own_room.client, own_room.namespace, jobs=jobs)
    async with watching(picture):
        assert told == [2, 3]


async def test_an_object_of_any_size_can_be_watched(own_room: Room) -> None:
    async with watching(Picture(own_room.client, own_room.namespace)) as picture:
        body = a_job("large")
        body["metadata"]["annotations"] = {"note": "x" * 250_000}
        await own_room.client.generation_jobs.create(own_room.namespace, body)
        await own_room.create("next")
        await picture.shows("large", "next")


async def test_after_an_interruption_it_goes_on_where_it_was(own_room: Room, cluster: LocalCluster) -> None:
    await own_room.create("kept")
    await own_room.create("deleted")
    async with gated(cluster) as (gate, client), watching(Picture(client, own_room.namespace)) as picture:
        gate.close()
        await own_room.client.generation_jobs.delete(own_room.namespace, "deleted")
        await own_room.create("new")
        gate.open()
        await picture.shows("kept", "new")
        assert picture.told[2:] == [("deleted", True), ("new", False)]
        assert picture.client.lists == 1


class OlderSpec(GenerationJobSpec):
    """The spec of a version that knew one scheduler only."""

    scheduler: Literal["DDIMScheduler"] | None = None  # type: ignore[assignment] # narrower on purpose
    priority: Literal[0] | None = None


class OlderJob(GenerationJob):
    """A job as that version reads it."""

    spec: OlderSpec


async def test_an_object_of_a_newer_version_stops_nothing(own_room: Room) -> None:
    """While an upgrade is under way, a part meets values that only the next version of it knows."""
    await own_room.create("old", scheduler="DDIMScheduler")
    await own_room.create("newer", scheduler="LMSDiscreteScheduler")
    async with watching(Picture(own_room.client, own_room.namespace, kind=OlderJob)) as picture:
        assert picture.told == [("old", False)]
        await own_room.create("newest", scheduler="UniPCMultistepScheduler")
        await own_room.create("plain")
        await picture.shows("old", "plain")
        await own_room.client.generation_jobs.delete(own_room.namespace, "newer")
        await own_room.client.generation_jobs.delete(own_room.namespace, "old")
        await picture.shows("plain")
    assert picture.client.lists == 1


async def test_an_object_that_can_no_longer_be_read_is_not_taken_for_deleted(own_room: Room) -> None:
    await own_room.create("changed")
    picture = Picture(own_room.client, own_room.namespace, kind=OlderJob)
    await picture.reflector.relist()
    await own_room.client.generation_jobs.patch(own_room.namespace, "changed", {"spec": {"priority": 7}})
    await picture.reflector.relist()
    assert picture.told == [("changed", False)]
    await own_room.client.generation_jobs.delete(own_room.namespace, "changed")
    await picture.reflector.relist()
    assert picture.told == [("changed", False), ("changed", True)]


@pytest.mark.parametrize("look", [Picture, Picture.of_the_operator], ids=["all of it", "the operator's"])
async def test_a_deletion_is_seen_after_the_api_server_was_restarted(
    own_room: Room, cluster: LocalCluster, look: Callable[[RestClient, str], Picture]
) -> None:
    """A restarted API server knows no history: it answers 410, and the difference of two lists tells of the rest."""
    await own_room.create("kept")
    deleted = await own_room.create("deleted")
    changed = await own_room.create("changed")
    async with gated(cluster) as (gate, client), watching(look(client, own_room.namespace)) as picture:
        gate.close()
        await own_room.client.generation_jobs.delete(own_room.namespace, "deleted")
        await own_room.write(own_room.client, changed, phase="Cancelled")
        server = cluster.control_plane.apiserver
        server.kill()
        server.start()
        await asyncio.to_thread(server.wait_ready)
        await eventually("a namespace that takes jobs", lambda: created(own_room, "new"))
        gate.open()
        await picture.shows("kept", "changed", "new")
        # One more list, or a few: an API server that has just started may answer the first with 429.
        assert picture.client.lists >= 2
        assert sorted(picture.told[3:]) == [("changed", False), ("deleted", True), ("new", False)]
        assert picture.gone == [(own_room.namespace, "deleted", deleted.uid)]
        assert picture.there["changed"].status.phase == "Cancelled"
        # The watch that follows is a live one.
        await own_room.create("last")
        await picture.shows("kept", "changed", "new", "last")


async def created(room: Room, name: str) -> bool:
    try:
        await room.create(name)
    except ConflictError:
        # An answer that was lost on the way: it was created by the try before.
        return True
    except KubernetesError:
        return False
    return True
