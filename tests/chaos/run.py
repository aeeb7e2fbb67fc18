"""One run: orders are placed while faults strike, then everything is waited for, taken down, and written down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from chaos import clock
from chaos.client import Clients
from chaos.evidence import Evidence, Memory
from chaos.faults import Fault
from chaos.injectors import inject
from chaos.load import Order
from chaos.system import Build, Site, System, ended
from kubediffusion.local import installation
from kubediffusion.local.errors import NotInTimeError
from kubediffusion.local.testing import Namespace, eventually

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 1.0
TAKE_DOWN_SECONDS = 120.0
LISTED = ("jobs", "pods", "leases")
"""Kinds of which nothing may be left when models and jobs are deleted, but for operator and API themselves."""


@dataclass(frozen=True)
class Plan:
    """What a run consists of.

    Attributes:
        name: Of its namespace.
        orders: The jobs.
        faults: What goes wrong.
        rate: Orders a second.
        patience: Seconds without any job's end after which those that are left are given up.
        build: How the parts are built.
    """

    name: str
    orders: Sequence[Order]
    faults: Sequence[Fault] = ()
    rate: float = 10.0
    patience: float = 120.0
    build: Build = field(default_factory=Build)


@dataclass(frozen=True)
class Strike:
    """A fault as it happened.

    Attributes:
        fault: Which.
        began: Seconds after the start of the run.
        hit: Whether there was anything to hit.
    """

    fault: Fault
    began: float
    hit: bool


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        evidence: For the checker.
        strikes: The faults as they happened.
        seconds: From the first order to the last end.
    """

    evidence: Evidence
    strikes: list[Strike]
    seconds: float


async def run(where: Site, plan: Plan, folder: Path) -> Outcome:
    """Carry a plan out.

    Args:
        where: The cluster.
        plan: What to do.
        folder: For files of the run's own.
    """
    namespace = Namespace(where.cluster, plan.name)
    namespace.create()
    system = System(where, namespace, clock.prepare(folder / "clock"))
    evidence = Evidence(plan.name, installation.BUCKET, installation.PREFIX)
    with system.recorder.recording():
        system.install(plan.build)
        await system.wait_ready()
        began = time.monotonic()
        watching = asyncio.create_task(_sample(system, evidence))
        over = asyncio.Event()
        striking = asyncio.create_task(_strike(system, plan.faults, began, over))
        await Clients(system, evidence).place(plan.orders, plan.rate)
        await wait_for_ends(system, plan.patience)
        over.set()
        strikes = await striking
        await wait_for_ends(system, plan.patience)
        seconds = time.monotonic() - began
        watching.cancel()
        evidence.versions = list(system.recorder.versions)
        evidence.gaps = list(system.recorder.gaps)
        evidence.stored = await asyncio.to_thread(system.stored)
        await take_down(system, evidence)
        namespace.delete()
    return Outcome(evidence, strikes, seconds)


async def _strike(system: System, faults: Sequence[Fault], began: float, over: asyncio.Event) -> list[Strike]:
    """Run each fault when its moment has come, beside those that still last, until it is all over."""
    strikes: list[Strike] = []

    async def one(fault: Fault) -> None:
        moment = time.monotonic() - began
        logger.info("%5.0f s, %d finished: %s", moment, len(system.recorder.finished), fault.kind)
        strikes.append(Strike(fault, moment, hit=await inject(system, fault)))

    async with asyncio.TaskGroup() as striking:
        for fault in faults:
            while len(system.recorder.finished) < fault.finished and not over.is_set():  # noqa: ASYNC110 - a thread's
                await asyncio.sleep(0.05)
            if over.is_set():
                break
            striking.create_task(one(fault))
    return strikes


async def wait_for_ends(system: System, patience: float) -> None:
    """Wait until every job has ended, or none has for a long time: what is left then is for the checker."""
    finished, changed = -1, time.monotonic()
    while not all(map(ended, system.jobs())):
        now = time.monotonic()
        if len(system.recorder.finished) != finished:
            finished, changed = len(system.recorder.finished), now
        if now - changed > patience:
            return
        await asyncio.sleep(0.2)


async def _sample(system: System, evidence: Evidence) -> None:
    """Note what operator and API hold, again and again."""
    while True:
        for part in (installation.OPERATOR, installation.API):
            for pod in system.pods(part):
                pid = system.pid(str(pod["metadata"]["name"]))
                with contextlib.suppress(psutil.Error):
                    if pid is not None:
                        held = psutil.Process(pid).memory_info().rss
                        evidence.memory.append(Memory(part, pid, len(system.recorder.finished), held))
        await asyncio.sleep(SAMPLE_SECONDS)


async def take_down(system: System, evidence: Evidence) -> None:
    """Delete jobs and models, and note what does not go with them."""
    namespace = system.namespace

    def deleted(kind: str) -> None:
        namespace.kubectl("delete", kind, "--all", "--wait=false")

    async def gone() -> bool:
        return not system.jobs()

    async def nothing() -> bool:
        return not _remains(system)

    await asyncio.to_thread(deleted, "generationjobs")
    with contextlib.suppress(NotInTimeError):
        await eventually("the jobs to go", gone, TAKE_DOWN_SECONDS)
    evidence.remains += [f"GenerationJob {job['metadata']['name']}" for job in system.jobs()]
    evidence.kept = await asyncio.to_thread(system.stored_keys)
    await asyncio.to_thread(deleted, "diffusionmodels")
    with contextlib.suppress(NotInTimeError):
        await eventually("the workers to go", nothing, TAKE_DOWN_SECONDS)
    evidence.remains += _remains(system)
    await asyncio.to_thread(deleted, "deployments")


def _remains(system: System) -> list[str]:
    """Return what there is beside operator and API."""
    found = [
        f"{kind} {item['metadata']['name']}"
        for kind in LISTED
        for item in system.namespace.list(kind)
        if not item["metadata"]["name"].startswith((installation.OPERATOR, installation.API))
    ]
    return found + system.processes()
