"""Reads of unknown jobs: seldom, shared, and never older than the question."""

from __future__ import annotations

import asyncio

import pytest

from kubediffusion.api.client_limits.lookups import CONCURRENCY, JobLookups
from kubediffusion.api.client_limits.rates import RateLimiter
from kubediffusion.api.errors import TooManyRequestsError
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.resources.apiserver.errors import KubernetesError
from unit.api.api_builders import cached

INTERVAL = 0.05


class Cluster:
    """Jobs that come into being while reads are under way."""

    def __init__(self) -> None:
        self.jobs: dict[str, CachedJob] = {}
        self.reads = 0
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = False

    async def read(self, name: str) -> CachedJob | None:
        self.reads += 1
        found = self.jobs.get(name)
        self.begun.set()
        await self.gate.wait()
        if self.away:
            raise KubernetesError(0, "Unreachable", "away")
        return found


def lookups(cluster: Cluster, limit: str = "") -> JobLookups:
    return JobLookups(cluster.read, RateLimiter(limit, "slow down"), INTERVAL)


async def test_a_job_is_found_at_once() -> None:
    cluster = Cluster()
    cluster.jobs["job"] = cached()
    assert await lookups(cluster).find("job", "me") is cluster.jobs["job"]


async def test_many_who_ask_share_reads() -> None:
    cluster = Cluster()
    looking = lookups(cluster)
    for _ in range(3):
        assert set(await asyncio.gather(*(looking.find("job", "me") for _ in range(100)))) == {None}
    # The first round may need a second read, for those who came while the first was under way.
    assert 3 <= cluster.reads <= 4


async def test_who_asks_after_the_job_was_created_finds_it() -> None:
    """Also while a read is under way that began before."""
    cluster = Cluster()
    looking = lookups(cluster)
    cluster.gate.clear()
    early = asyncio.create_task(looking.find("job", "me"))
    await cluster.begun.wait()
    cluster.jobs["job"] = cached()
    late = asyncio.create_task(looking.find("job", "me"))
    await asyncio.sleep(0)
    cluster.gate.set()
    assert await early is None
    assert await late is cluster.jobs["job"]


async def test_a_client_has_an_allowance_of_misses() -> None:
    cluster = Cluster()
    looking = lookups(cluster, "3/minute")
    for number in range(3):
        assert await looking.find(f"nothing-{number}", "me") is None
    with pytest.raises(TooManyRequestsError) as refused:
        await looking.find("nothing", "me")
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
    assert cluster.reads == 3
    assert await looking.find("nothing", "somebody else") is None


async def test_requests_that_wait_together_do_not_get_past_the_allowance() -> None:
    cluster = Cluster()
    looking = lookups(cluster, "3/minute")
    asked = [looking.find(f"nothing-{number}", "me") for number in range(50)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert cluster.reads == 3
    assert answers.count(None) == 3
    assert sum(isinstance(answer, TooManyRequestsError) for answer in answers) == 47


async def test_a_client_that_has_nothing_left_takes_nothing_from_another() -> None:
    cluster = Cluster()
    cluster.jobs["job"] = cached()
    looking = lookups(cluster, "1/minute")
    assert await looking.find("nothing", "me") is None
    refused, found = await asyncio.gather(
        looking.find("job", "me"), looking.find("job", "somebody else"), return_exceptions=True
    )
    assert isinstance(refused, TooManyRequestsError)
    assert found is cluster.jobs["job"]


async def test_many_that_find_their_jobs_together_are_not_held_up() -> None:
    cluster = Cluster()
    cluster.jobs = {f"job-{number}": cached(f"job-{number}") for number in range(100)}
    looking = lookups(cluster, f"{CONCURRENCY}/minute")
    found = await asyncio.gather(*(looking.find(name, "me") for name in cluster.jobs))
    assert list(found) == list(cluster.jobs.values())


async def test_the_api_server_being_away_spends_nothing() -> None:
    cluster = Cluster()
    cluster.away = True
    looking = lookups(cluster, "1/minute")
    for _ in range(2):
        with pytest.raises(KubernetesError):
            await looking.find("job", "me")


async def test_finding_spends_nothing() -> None:
    cluster = Cluster()
    cluster.jobs = {f"job-{number}": cached(f"job-{number}") for number in range(10)}
    looking = lookups(cluster, "1/minute")
    for name in cluster.jobs:
        assert await looking.find(name, "me") is not None


async def test_the_api_server_being_away_is_no_404() -> None:
    cluster = Cluster()
    cluster.away = True
    with pytest.raises(KubernetesError):
        await lookups(cluster).find("job", "me")


async def test_who_gives_up_takes_nobody_along() -> None:
    cluster = Cluster()
    cluster.jobs["job"] = cached()
    looking = lookups(cluster)
    cluster.gate.clear()
    first, second = (asyncio.create_task(looking.find("job", "me")) for _ in range(2))
    # Both wait for the one read.
    await cluster.begun.wait()
    first.cancel()
    cluster.gate.set()
    assert await second is cluster.jobs["job"]


async def test_nothing_is_left_behind() -> None:
    cluster = Cluster()
    looking = lookups(cluster)
    for number in range(50):
        await looking.find(f"nothing-{number}", "me")
    # What a look-up leaves is kept for so long.
    await asyncio.sleep(INTERVAL)
    await looking.find("last", "me")
    assert len(looking) == 1
