"""How long a job takes from its request to its end, and where that time goes.

Jobs are offered at a rate, whether earlier ones have ended or not (an open loop), and each is timed from the moment it
was due, so that a system that falls behind cannot hide it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from kubediffusion.benchmarks import figures
from kubediffusion.benchmarks.site import BenchmarkError, Site
from kubediffusion.benchmarks.sizes import Sizes
from kubediffusion.benchmarks.usage import Meter

STAGES = ("create", "bind", "start", "engine", "upload", "report", "visible")
"""From one to the next: due, accepted (202), seen bound, begun by the worker, computed, confirmed by storage, seen
finished, read by a client."""
POLL_SECONDS = 0.002
IDLE_SECONDS = 90.0
JOB_SECONDS = 120.0


@dataclass
class Life:
    """What is known of a job: moments in seconds of the wall clock, which all processes of a machine share.

    Attributes:
        bound: When a watch showed it bound.
        ended: When a watch showed it ended.
        status: Its status then.
        over: Set then.
    """

    bound: float = 0.0
    ended: float = 0.0
    status: dict[str, Any] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def see(self, status: dict[str, Any], now: float) -> None:
        """Note the moments in a state that the watch shows."""
        phase = status.get("phase", "Pending")
        if phase != "Pending" and not self.bound:
            self.bound = now
        if phase in {"Succeeded", "Failed", "Cancelled"}:
            self.ended, self.status = now, status
            self.over.set()


async def run(site: Site, sizes: Sizes) -> dict[str, Any]:
    """Measure one job at a time, then each rate."""
    offers: list[tuple[int, int]] = [(0, sizes.singles), *((rate, rate * sizes.rate_seconds) for rate in sizes.rates)]
    found = []
    for rate, jobs in offers:
        runs = [await offer(site, rate, jobs) for _ in range(sizes.runs)]
        found.append({"runs": len(runs), **figures.median(runs)})
    return {"offers": found}


async def offer(site: Site, rate: int, jobs: int) -> dict[str, Any]:
    """Send jobs at a rate a second, or one after the other where that is 0, and say how long they took.

    Returns:
        rate, jobs, stages (percentiles of each, in seconds), completed and seen (percentiles from the request to the
        end, and to the client's sight of it; the engine's time taken out), cores (that were busy).
    """
    await site.clear()
    async with watching(site) as lives:
        meter = Meter(site.pids())
        began = time.time()
        if rate:
            moments = (began + number / rate for number in range(jobs))
            stages = await asyncio.gather(*(live(site, lives, due) for due in moments))
        else:
            stages = [await live(site, lives, time.time()) for _ in range(jobs)]
        seconds, used = meter.read()
    engine, visible = STAGES.index("engine"), STAGES.index("visible")
    seen = [sum(one) - one[engine] for one in stages]
    return {
        "rate": rate,
        "jobs": jobs,
        "stages": {name: figures.percentiles([one[i] for one in stages]) for i, name in enumerate(STAGES)},
        "completed": figures.percentiles([total - one[visible] for total, one in zip(seen, stages, strict=True)]),
        "seen": figures.percentiles(seen),
        "cores": sum(usage.cpu for usage in used.values()) / seconds,
        "processes": {name: asdict(usage) for name, usage in used.items()},
    }


async def live(site: Site, lives: dict[str, Life], due: float) -> tuple[float, ...]:
    """Send a job when it is due, wait for its end, and return the seconds of each stage."""
    await asyncio.sleep(due - time.time())
    task = await site.submit()
    accepted = time.time()
    life = lives[task]
    async with asyncio.timeout(JOB_SECONDS):
        await life.over.wait()
        # What a client sees that asks again and again, from the moment on when there is something to see.
        result = await site.result(task)
        while result["status"] not in {"completed", "failed"}:
            await asyncio.sleep(POLL_SECONDS)
            result = await site.result(task)
    read = time.time()
    if result["status"] != "completed" or not result["image_base64"]:
        raise BenchmarkError(f"task {task} failed: {life.status}")
    start = _moment(life.status["startTime"])
    engine = start + life.status["timings"]["inference"]
    moments = [due, accepted, life.bound, start, engine, _moment(life.status["completionTime"]), life.ended, read]
    # A watch may show what happened before the answer to the request has arrived: no stage is negative.
    reached = list(itertools.accumulate(moments, max))
    return tuple(after - before for before, after in itertools.pairwise(reached))


@asynccontextmanager
async def watching(site: Site) -> AsyncIterator[dict[str, Life]]:
    """Watch all jobs for as long as the block runs, and note when each changes its state."""
    lives: defaultdict[str, Life] = defaultdict(Life)
    page = await site.kubernetes.request("GET", site.collection, query={"limit": 1})
    query: dict[str, str | int] = {"watch": "true", "resourceVersion": page["metadata"]["resourceVersion"]}

    async def watch() -> None:
        async for event in site.kubernetes.stream(site.collection, query, IDLE_SECONDS):
            job = event["object"]
            lives[job["metadata"]["name"]].see(job.get("status", {}), time.time())

    watcher = asyncio.create_task(watch())
    try:
        yield lives
        if watcher.done():
            watcher.result()
            raise BenchmarkError("the API server ended the watch")
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


def _moment(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()
