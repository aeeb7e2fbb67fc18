"""What each fault does to a running system. None of it needs a hook in production code.

Where one sleeps for ``fault.seconds``, that is how long the plan has it last.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from chaos import clock
from chaos.faults import Fault, Kind
from chaos.proxy import Disturbance
from chaos.system import System, ended
from kubediffusion.local import installation
from kubediffusion.local.errors import LocalError, NotInTimeError
from kubediffusion.local.testing import eventually

TARGET_SECONDS = 60.0
"""How long a fault waits for something to hit, such as a worker that has jobs."""
ZOMBIE_SECONDS = 15.0
"""How long a frozen worker waits for its jobs to end elsewhere."""
THAWED_SECONDS = 12.0
"""How long a thawed worker has to store an image over another's, before it learns what became of its jobs.

Both together are less than its Pod's time of grace, after which it is killed.
"""
CLOCK_SECONDS = 300
"""How far clocks are stepped: less than S3 signatures bear."""

XML = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>injected</Message></Error>"

Injector = Callable[[System, Fault, random.Random], Awaitable[bool]]
"""Runs a fault and ends it; returns whether there was anything to hit."""


async def inject(system: System, fault: Fault) -> bool:
    """Run a fault, until it is over, and return whether it hit anything."""
    return await INJECTORS[fault.kind](system, fault, random.Random(fault.number))  # noqa: S311 - reproducible


def kill(prefix: str) -> Injector:
    """Kill a Pod's process."""

    async def injector(system: System, _: Fault, rng: random.Random) -> bool:
        pods = [str(pod["metadata"]["name"]) for pod in system.pods(prefix)]
        return bool(pods) and system.signal(rng.choice(sorted(pods)), signal.SIGKILL)

    return injector


async def kill_worker(system: System, _: Fault, rng: random.Random) -> bool:
    """Kill a worker that has jobs."""
    worker = await _busy_worker(system, rng)
    return worker is not None and system.signal(worker, signal.SIGKILL)


async def kill_worker_unreported(system: System, _: Fault, __: random.Random) -> bool:
    """Kill the worker whose image storage has just confirmed, before it knows and can report it."""
    killed = asyncio.Event()

    async def on_put(path: str, status: int) -> None:
        worker = system.holder(_job_of(path)) if status < 300 else None
        if not killed.is_set() and worker is not None and system.signal(worker, signal.SIGKILL):
            killed.set()

    with system.site.to_storage.observed(on_put):
        return await _set_within(killed, TARGET_SECONDS)


async def delete_worker(system: System, _: Fault, rng: random.Random) -> bool:
    """Delete a worker's Pod, as a drain does: it may finish its batch."""
    worker = await _busy_worker(system, rng)
    if worker is not None:
        await _delete(system, worker)
    return worker is not None


async def freeze_worker(system: System, fault: Fault, rng: random.Random) -> bool:
    """Stop a worker with its jobs in it, and let it go on."""
    worker = await _busy_worker(system, rng)
    if worker is None:
        return False
    with _frozen(system, worker):
        await asyncio.sleep(fault.seconds)
    return True


async def cut_off_worker(system: System, fault: Fault, rng: random.Random) -> bool:
    """Keep everything between a worker and the API server; it arrives when the network is back."""
    worker = await _busy_worker(system, rng)
    if worker is None:
        return False
    with system.site.to_apiserver.disturbed(Disturbance(client=f"kubediffusion-worker/{worker}", hold=True)):
        await asyncio.sleep(fault.seconds)
    return True


async def make_zombie(system: System, _: Fault, rng: random.Random) -> bool:
    """Freeze and delete a worker, let its jobs run elsewhere, and thaw it while it cannot learn of that.

    It goes on as if nothing had happened: it stores images over those of its successor and, once the network is back,
    reports jobs that are no longer its own.
    """

    async def made() -> bool:
        worker = await _busy_worker(system, rng)
        return worker is not None and len(system.workers()) > 1 and await _make_zombie_of(system, worker)

    try:
        return await eventually("a worker that is frozen with jobs beside another", made, TARGET_SECONDS)
    except NotInTimeError:
        return False


async def _make_zombie_of(system: System, worker: str) -> bool:
    """Make a zombie of a worker; do nothing, and return False, where it has stored the images of all its jobs.

    Such a worker has reports alone to make: it stores nothing over the images of its successor.
    """
    with system.site.to_apiserver.disturbed(Disturbance(client=f"kubediffusion-worker/{worker}", hold=True)):
        with _frozen(system, worker):
            done = {_job_of(key) for key in await asyncio.to_thread(system.stored_keys)}
            taken = {
                job["metadata"]["uid"]
                for job in system.jobs()
                if not ended(job) and job.get("status", {}).get("worker") == worker
            }
            if not taken - done:
                return False
            await _delete(system, worker)

            async def lost() -> bool:
                # Those that were running wait for its end.
                jobs = [job for job in system.jobs() if job["metadata"]["uid"] in taken]
                return all(ended(job) or job["status"].get("phase") == "Running" for job in jobs)

            with contextlib.suppress(NotInTimeError):
                await eventually("the zombie's jobs to end elsewhere", lost, ZOMBIE_SECONDS)
        elsewhere = {
            job["metadata"]["uid"]
            for job in system.jobs()
            if job.get("status", {}).get("phase") == "Succeeded" and job["status"].get("worker") != worker
        }
        stored = asyncio.Event()

        async def on_put(path: str, _: int) -> None:
            if _job_of(path) in taken & elsewhere:
                stored.set()

        with system.site.to_storage.observed(on_put):
            if taken & elsewhere:
                await _set_within(stored, THAWED_SECONDS)
    return True


async def fill_disks(system: System, fault: Fault, _: random.Random) -> bool:
    """Limit the files of all workers to their size: what a full disk does to logs and caches, without filling one."""
    pids = [pid for worker in system.workers() if (pid := system.pid(worker)) is not None]
    limits: dict[int, tuple[int, int]] = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            limits[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[pid][1]))
    await asyncio.sleep(fault.seconds)
    for pid, limit in limits.items():
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    return bool(limits)


async def kill_etcd(system: System, fault: Fault, _: random.Random) -> bool:
    """Kill etcd and start it again."""
    await system.restart(system.site.cluster.control_plane.etcd, fault.seconds)
    return True


async def kill_apiserver(system: System, fault: Fault, _: random.Random) -> bool:
    """Kill the API server and start it again."""
    await system.restart(system.site.cluster.control_plane.apiserver, fault.seconds)
    return True


async def kill_storage(system: System, fault: Fault, _: random.Random) -> bool:
    """Kill the S3 server and start it again after a while."""
    await system.restart(system.site.cluster.store.process, fault.seconds)
    return True


async def step_clocks(system: System, fault: Fault, rng: random.Random) -> bool:
    """Step the clocks of operator and workers, and step them back."""
    clock.step(system.clocks, rng.choice((-CLOCK_SECONDS, CLOCK_SECONDS)))
    await asyncio.sleep(fault.seconds)
    clock.step(system.clocks, 0)
    return True


def disturb_apiserver(disturbance: Disturbance) -> Injector:
    """Disturb what goes to the API server."""

    async def injector(system: System, fault: Fault, _: random.Random) -> bool:
        with system.site.to_apiserver.disturbed(disturbance):
            await asyncio.sleep(fault.seconds)
        return True

    return injector


def disturb_storage(disturbance: Disturbance) -> Injector:
    """Disturb what goes to the S3 server."""

    async def injector(system: System, fault: Fault, _: random.Random) -> bool:
        with system.site.to_storage.disturbed(disturbance):
            await asyncio.sleep(fault.seconds)
        return True

    return injector


async def _busy_worker(system: System, rng: random.Random) -> str | None:
    """Return a ready worker that has jobs; None when there is none for a while."""

    async def busy() -> list[str]:
        having = {job["status"].get("worker") for job in system.jobs() if "status" in job and not ended(job)}
        return [worker for worker in system.workers() if worker in having]

    try:
        return rng.choice(await eventually("a worker with jobs", busy, TARGET_SECONDS))
    except NotInTimeError:
        return None


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, and return whether it came in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _job_of(path: str) -> str:
    """Return the UID of the job whose image lies at a path of the S3 server."""
    return path.split("/")[-2]


async def _delete(system: System, pod: str) -> None:
    while True:
        try:
            await asyncio.to_thread(
                system.namespace.kubectl, "delete", "pod", pod, "--wait=false", "--ignore-not-found"
            )
        except LocalError:  # the API server is away, which has no end to wait for here: another fault brings it back
            await asyncio.sleep(1)
        else:
            return


@contextmanager
def _frozen(system: System, worker: str) -> Iterator[None]:
    """Stop a Pod's processes for as long as the block runs."""
    system.signal(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        system.signal(worker, signal.SIGCONT)


BUSY = b'{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"TooManyRequests","code":429}'

INJECTORS: dict[Kind, Injector] = {
    Kind.OPERATOR_KILLED: kill(installation.OPERATOR),
    Kind.API_KILLED: kill(installation.API),
    Kind.WORKER_KILLED: kill_worker,
    Kind.WORKER_KILLED_UNREPORTED: kill_worker_unreported,
    Kind.WORKER_DELETED: delete_worker,
    Kind.WORKER_FROZEN: freeze_worker,
    Kind.WORKER_FROZEN_LONG: freeze_worker,
    Kind.WORKER_CUT_OFF: cut_off_worker,
    Kind.WORKER_ZOMBIE: make_zombie,
    Kind.WORKER_DISK_FULL: fill_disks,
    Kind.ETCD_KILLED: kill_etcd,
    Kind.APISERVER_KILLED: kill_apiserver,
    Kind.STORAGE_KILLED: kill_storage,
    Kind.STORAGE_SLOW: disturb_storage(Disturbance(delay=4.0)),
    Kind.STORAGE_ERRORS: disturb_storage(Disturbance(share=0.8, answer=(500, XML % b"InternalError"))),
    Kind.STORAGE_DENIES: disturb_storage(Disturbance(answer=(403, XML % b"AccessDenied"))),
    Kind.STORAGE_BREAKS_OFF: disturb_storage(Disturbance(share=0.5, lose=True)),
    Kind.WATCHES_GONE: disturb_apiserver(Disturbance(gone=True)),
    Kind.WATCHES_JUMBLED: disturb_apiserver(Disturbance(jumble=True)),
    Kind.TOO_MANY_REQUESTS: disturb_apiserver(Disturbance(share=0.7, answer=(429, BUSY))),
    Kind.ANSWERS_LOST: disturb_apiserver(Disturbance(share=0.3, lose=True)),
    Kind.CLOCK_STEPPED: step_clocks,
}
