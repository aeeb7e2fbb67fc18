"""What a stream tells, for any order in which the cache changes while its client reads or does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from httpx_sse import ServerSentEvent
from httpx_sse._decoders import SSEDecoder
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_cache.changes import KEPT_DELETIONS
from kubediffusion.api.job_cache.filters import JobFilter
from kubediffusion.api.job_cache.records import JobRecord
from kubediffusion.api.job_events.states import EventId
from kubediffusion.api.job_events.streams import CHUNK, JobStreams, Stream
from kubediffusion.api.metrics import Metrics
from kubediffusion.api.model_cache import ModelCache
from kubediffusion.api.settings import Settings
from kubediffusion.resources.generation_job import Phase
from unit.api.api_builders import body, cached

HEARTBEAT = 0.02


def _later(allowed: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def answer() -> bool:
        return allowed()

    return answer


class Replica:
    """A cache, and the streams over it."""

    def __init__(self, **settings: Any) -> None:
        self.jobs = JobCache()
        own = Settings(**{"stream_heartbeat_seconds": HEARTBEAT, **settings})
        self.streams = JobStreams(own, self.jobs, ModelCache(), Metrics())

    def shows(self, name: str = "job", version: int = 1, phase: str = "Pending", **changes: Any) -> None:
        """Let the watch show a job."""
        self.jobs.on_change(JobRecord.from_wire(body(name, version, phase, **changes)), False)

    def deletes(self, name: str, version: int, **changes: Any) -> None:
        self.jobs.on_change(JobRecord.from_wire(body(name, version, **changes)), True)

    def of_job(self, told: str | None = None, name: str = "job", allowed: Callable[[], bool] = lambda: True) -> Stream:
        job = self.jobs.get(name)
        assert job is not None
        return self.streams.of_job(job, EventId.parse(told), _later(allowed))

    def of_jobs(self, told: str | None = None, **wanted: Any) -> Stream:
        return self.streams.of_jobs(JobFilter(**wanted), EventId.parse(told), _later(lambda: True))


async def event(stream: Stream) -> ServerSentEvent | None:
    """Read until an event; None at the end of the stream."""
    decoder = SSEDecoder()
    async for piece in stream:
        for line in piece.decode().splitlines():
            if (found := decoder.decode(line)) is not None:
                return found
    return None


async def state(stream: Stream) -> dict[str, Any]:
    """Read the next event, which has a state."""
    found = await event(stream)
    assert found is not None
    parsed: dict[str, Any] = found.json()
    return parsed


def running(step: int) -> dict[str, Any]:
    return {"phase": "Running", "status": {"progress": {"step": step, "total": 50, "summary": f"{step}/50"}}}


async def test_what_changes_while_nobody_reads_is_told_once() -> None:
    replica = Replica()
    replica.shows(version=1)
    stream = replica.of_job()
    assert (await state(stream))["phase"] == "Pending"
    for step in range(1, 40):
        replica.shows(version=1 + step, **running(step))
    assert (await state(stream))["progress"] == "39/50"
    replica.shows(version=50, phase="Succeeded")
    last = await event(stream)
    assert last is not None
    assert (last.event, last.json()["phase"]) == ("end", "Succeeded")
    assert await event(stream) is None


async def test_a_list_that_nobody_reads_holds_nothing() -> None:
    replica = Replica()
    stream = replica.of_jobs()
    assert (await event(stream)).event == "bookmark"  # type: ignore[union-attr] # it has not ended
    for version in range(1, 100):
        for number in range(3):
            replica.shows(f"job-{number}", 3 * version + number, **running(version % 50))
    told = [await state(stream) for _ in range(3)]
    assert [(each["name"], each["progress"]) for each in told] == [(f"job-{number}", "49/50") for number in range(3)]


async def test_a_state_that_others_may_have_come_before_waits_for_the_watch() -> None:
    """The watch is behind a write of this process: the id of an event must not skip what it has not shown."""
    replica = Replica()
    stream = replica.of_jobs()
    await event(stream)
    replica.jobs.remember(cached("own", version=9))
    replica.shows("other", version=8)
    assert (await state(stream))["name"] == "other"
    replica.shows("own", version=9)
    assert (await state(stream))["name"] == "own"


async def test_a_replica_that_is_behind_tells_nothing_old() -> None:
    replica = Replica()
    replica.shows(version=5, **running(3))
    behind = Replica()
    behind.shows(version=4, **running(2))
    first = await event(replica.of_job())
    assert first is not None
    resumed = asyncio.ensure_future(event(behind.of_job(first.id)))
    # Nothing happens, which has no moment: for some heartbeats it speaks of nothing else.
    await asyncio.sleep(3 * HEARTBEAT)
    behind.shows(version=5, **running(3))
    await asyncio.sleep(3 * HEARTBEAT)
    assert not resumed.done()
    behind.shows(version=6, **running(4))
    assert (await asyncio.wait_for(resumed, 10)).json()["progress"] == "4/50"  # type: ignore[union-attr] # not ended


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 2)), max_size=30))
def test_whoever_resumes_knows_the_last_state_of_every_job(changes: list[tuple[str, bool, int]]) -> None:
    """However much of it was read before the connection was lost, on any replica that has the same watch."""
    here, there = Replica(stream_heartbeat_seconds=3600), Replica(stream_heartbeat_seconds=3600)
    known: dict[str, str] = {}
    expected: dict[str, str] = {}

    async def told_by(stream: Stream) -> ServerSentEvent:
        found = await event(stream)
        assert found is not None
        if found.event != "bookmark":
            job = found.json()
            known[job["name"]] = job["progress"] or job["phase"]
        return found

    async def run() -> None:
        stream = here.of_jobs()
        last_id = (await told_by(stream)).id
        for version, (name, ends, reads) in enumerate(changes, 1):
            if expected.get(name) == "Succeeded":
                continue
            expected[name] = "Succeeded" if ends else f"{version}/50"
            for replica in (here, there):
                replica.shows(name, version, **({"phase": "Succeeded"} if ends else running(version)))
            for _ in range(min(reads, len(here.jobs.changes.after(int(last_id), 2)))):
                last_id = (await told_by(stream)).id
        await stream.aclose()
        resumed = there.of_jobs(last_id)
        while (await told_by(resumed)).event != "bookmark":
            pass

    asyncio.run(run())
    assert known == expected


async def test_deletions_are_told_and_remembered_for_a_while() -> None:
    replica = Replica()
    replica.shows("red", version=1, metadata={"labels": {"color": "red"}})
    replica.shows("blue", version=2, metadata={"labels": {"color": "blue"}})
    live = replica.of_jobs(labels=(("color", "red"),))
    first = await event(live)
    assert first is not None
    replica.deletes("blue", version=3)
    replica.deletes("red", version=4, metadata={"labels": {"color": "red"}})
    for stream in (live, replica.of_jobs(first.id, labels=(("color", "red"),))):
        found = await event(stream)
        while found is not None and found.event == "bookmark":
            found = await event(stream)
        assert found is not None
        assert (found.event, found.json(), found.id) == ("deleted", {"name": "red"}, "4")
    for number in range(2 * KEPT_DELETIONS):
        replica.deletes(f"job-{number}", version=5 + number)
    assert len(replica.jobs.changes.deletions_after(0)) == KEPT_DELETIONS


async def test_many_jobs_are_told_in_turns() -> None:
    replica = Replica()
    for version in range(1, 2 * CHUNK + 10):
        replica.shows(f"job-{version}", version)
    stream = replica.of_jobs(phases=frozenset({Phase.PENDING}))
    names = []
    while (found := await event(stream)) is not None and found.event == "state":
        names.append(found.json()["name"])
    assert names == [f"job-{version}" for version in range(1, 2 * CHUNK + 10)]


async def test_a_job_of_the_same_name_is_another_job() -> None:
    replica = Replica()
    replica.shows(version=1)
    stream = replica.of_job()
    await event(stream)
    replica.deletes("job", version=2)
    replica.shows(version=3, metadata={"uid": "another"})
    found = await event(stream)
    assert found is not None
    assert found.event == "deleted"
    assert await event(stream) is None


@pytest.mark.parametrize("many", [False, True])
async def test_a_key_that_is_withdrawn_ends_the_stream_at_the_next_heartbeat(many: bool) -> None:
    replica = Replica()
    replica.shows()
    wanted = JobFilter()
    job = replica.jobs.get("job")
    assert job is not None
    streams = replica.streams
    allowed = _later(lambda: False)
    stream = streams.of_jobs(wanted, None, allowed) if many else streams.of_job(job, None, allowed)
    assert (await event(stream)) is not None
    assert (await event(stream)) is None


@pytest.mark.parametrize("text", ["", "x", "-1", "1-", "1-abc", "1-0000000g", "\u0661", "9" * 20, None])
def test_an_id_that_is_none_of_ours_is_none(text: str | None) -> None:
    assert EventId.parse(text) is None


@given(st.integers(0, 10**19 - 1), st.integers(0, 2**32 - 1))
def test_an_id_is_read_as_it_was_written(version: int, digest: int) -> None:
    assert EventId.parse(str(EventId(version, digest))) == EventId(version, digest)


def test_a_state_is_json_in_one_line() -> None:
    """A line break within would end the field."""
    replica = Replica()
    replica.shows(phase="Failed", status={"error": {"code": "X", "message": "two\nlines\r\u2028"}})

    async def read() -> ServerSentEvent | None:
        return await event(replica.of_job())

    found = asyncio.run(read())
    assert found is not None
    assert json.loads(found.data)["error"]["message"] == "two\nlines\r\u2028"
