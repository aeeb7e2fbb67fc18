"""A list whose filter few jobs match looks at many, and keeps nobody waiting meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from kubediffusion.api import service as services
from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_cache.filters import JobFilter
from kubediffusion.api.job_cache.records import AgeKey
from kubediffusion.api.metrics import Metrics
from kubediffusion.api.model_cache import ModelCache
from kubediffusion.api.service import MOST_LOOKED_AT, SLICE, JobService
from kubediffusion.api.settings import Settings
from unit.api.api_builders import cached


def service_of(count: int, **first: Any) -> tuple[JobService, JobCache]:
    """Build a service with so many jobs; the oldest of them differs."""
    jobs = JobCache()
    for number in range(count):
        jobs.remember(cached(f"job-{number:06}", number + 1, **(first if number == 0 else {})))
    # It asks the API server for nothing that it has.
    return JobService(Settings(), cast(Any, None), jobs, ModelCache(), Metrics()), jobs


async def test_others_have_their_turn_after_each_slice() -> None:
    service, _ = service_of(10 * SLICE, spec={"prompt": "a dog"})
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for wanted in (JobFilter(text="dog"), JobFilter(labels=(("team", None),))):
        turns = 0
        found, end = await service.newest(wanted, 5, None)
        assert ([job.name for job in found], end) == (["job-000000"] if wanted.text else [], None)
        assert turns >= 10
    task.cancel()


async def test_a_page_ends_where_it_has_looked_at_enough_and_the_next_goes_on(monkeypatch: Any) -> None:
    assert MOST_LOOKED_AT % SLICE == 0
    monkeypatch.setattr(services, "MOST_LOOKED_AT", 2 * SLICE)
    service, _ = service_of(5 * SLICE, spec={"prompt": "a dog"})
    pages: list[list[str]] = []
    before: AgeKey | None = None
    while True:
        found, before = await service.newest(JobFilter(text="dog"), 5, before)
        pages.append([job.name for job in found])
        if before is None:
            break
    assert pages == [[], [], ["job-000000"]]


async def test_a_page_misses_nothing_of_what_changes_while_it_looks() -> None:
    """Jobs that move between phases in the meantime are in it once; those that are deleted may be missing."""
    service, jobs = service_of(3 * SLICE)

    async def change() -> None:
        for number in range(3 * SLICE):
            jobs.remember(cached(f"job-{number:06}", 1_000_000 + number, "Running"))
            if number % 50 == 0:
                await asyncio.sleep(0)

    task = asyncio.create_task(change())
    found, end = await service.newest(JobFilter(text="cat"), 500, None)
    await task
    assert ([job.name for job in found], end) == ([f"job-{number:06}" for number in reversed(range(3 * SLICE))], None)
