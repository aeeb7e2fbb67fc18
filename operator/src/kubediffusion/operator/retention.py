"""Deletes finished jobs: those whose time to live is over, and the oldest where there are too many.

Which jobs are too many decides :mod:`.finished_jobs`; :mod:`kubediffusion.resources.time_to_live` says how long one
stays. :class:`Retention` keeps when each is due, asks the API server, and tries again. Deleted jobs that their images
hold are released by :mod:`.image_releases`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import dataclass

from kubediffusion.operator import metrics
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.deadline_queue import DeadlineQueue, time_after
from kubediffusion.operator.events import log_fields
from kubediffusion.operator.fair_queue import FairQueue
from kubediffusion.operator.finished_jobs import FinishedJobs
from kubediffusion.operator.image_releases import AT_ONCE, ImageReleases, awaits_image_deletion
from kubediffusion.resources.apiserver.errors import KubernetesError, NotFoundError
from kubediffusion.resources.backoff import Backoffs
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.owed_webhooks import held_until
from kubediffusion.resources.transitions import TERMINAL

logger = logging.getLogger(__name__)

EXPIRING = 8
"""Finished jobs that are deleted at the same time."""

EXPIRING_OF_A_NAMESPACE = 4
"""Those of one namespace among them: a webhook that is slow to answer in one leaves places for the others."""


@dataclass(frozen=True)
class RetentionPauses:
    """Seconds that the deletion of finished jobs waits.

    Attributes:
        first: Until what failed is tried again, at first.
        longest: The same, at most.
        longest_refused: The same, of what the API server refuses: there may be thousands, until somebody acts.
        default_ttls: Between two jobs whose default time to live is written into their spec.
        counting: Between two looks at which namespaces have too many finished jobs.
        quotas: Between two lists of the namespaces' ResourceQuotas.
    """

    first: float = 1.0
    longest: float = 60.0
    longest_refused: float = 1800.0
    default_ttls: float = 0.2
    counting: float = 2.0
    quotas: float = 30.0


@dataclass(frozen=True)
class RetentionPolicy:
    """Which finished jobs stay, and for how long.

    Attributes:
        ttl_of: Returns the seconds that a job stays once it has finished; None for ever.
        most_finished: Finished jobs of one namespace that are kept; 0 for any number.
        webhook_hold: Seconds after its end for which a job stays at least whose webhook's receiver has not been told.
    """

    ttl_of: Callable[[GenerationJob], int | None] = lambda job: job.spec.ttl_seconds_after_finished
    most_finished: int = 0
    webhook_hold: int = 0


def expiry(job: GenerationJob, ttl: int | None) -> dt.datetime | None:
    """Return when a finished job is to be deleted; None when it has not finished or is kept.

    Args:
        job: The job.
        ttl: Seconds that it stays; None for ever.
    """
    finished = job.status.completion_time
    if job.status.phase not in TERMINAL or ttl is None or finished is None:
        return None
    return time_after(finished, ttl)


class Retention:
    """Deletes finished jobs, a few at a time: thousands may be due in one moment, and nobody else must wait for them.

    Args:
        cluster: Where the jobs are.
        releases: Takes deleted jobs that their images hold.
        policy: Which jobs stay.
        unfinished: Returns how many unfinished jobs a namespace has.
        pauses: How long it waits.
    """

    def __init__(
        self,
        cluster: Cluster,
        releases: ImageReleases,
        policy: RetentionPolicy = RetentionPolicy(),
        unfinished: Callable[[str], int] = lambda _: 0,
        pauses: RetentionPauses = RetentionPauses(),
    ) -> None:
        self._cluster = cluster
        self._releases = releases
        self._policy = policy
        self._pauses = pauses
        self._finished = FinishedJobs(policy.most_finished, unfinished)
        self._without_ttl: asyncio.Queue[GenerationJob] = asyncio.Queue()
        """Finished jobs that name no time to live yet."""
        self._expiries = DeadlineQueue()
        self._due = FairQueue[tuple[str, str]](EXPIRING_OF_A_NAMESPACE)
        """Name and uid of the finished jobs that are due."""
        self._added = asyncio.Event()
        self._backoffs = Backoffs(pauses.first, pauses.longest)
        self._refusals = Backoffs(pauses.first, pauses.longest_refused)

    def add(self, job: GenerationJob) -> None:
        """Queue a finished or deleted job for what is due: its deletion, or that of its images."""
        if awaits_image_deletion(job):
            self._releases.add(job)
            return
        due = expiry(job, self._policy.ttl_of(job))
        if due is not None and job.spec.ttl_seconds_after_finished is None:
            self._without_ttl.put_nowait(job)
        held = held_until(job.spec, job.status, self._policy.webhook_hold)
        if held is not None and held > dt.datetime.now(dt.UTC):
            # Until its receiver has been told, or then, it is looked at again.
            due = held if due is None else max(due, held)
        else:
            self._finished.add(job)
        if due is not None:
            self._expiries.add(due, job)
            self._added.set()

    def remove(self, job_uid: str) -> None:
        """Forget a job that is gone: nothing is due for it any more."""
        self._expiries.remove(job_uid)
        self._finished.remove(job_uid)
        self._forget_failures(job_uid)
        self._releases.remove(job_uid)

    async def run(self) -> None:
        """Delete what is due until cancelled."""
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(AT_ONCE):
                    workers.create_task(self._releases.release_all())
                for _ in range(EXPIRING):
                    workers.create_task(self._expire_all())
                workers.create_task(self._queue_due())
                workers.create_task(self._write_default_ttls())
                workers.create_task(self._count_all())
                workers.create_task(self._read_quotas())
        finally:
            self._releases.close()

    async def _count_all(self) -> None:
        """Have the oldest finished jobs deleted where a namespace has too many."""
        while True:
            now = dt.datetime.now(dt.UTC)
            for namespace, name, uid in self._finished.take_surplus(now):
                self._expiries.add_entry(now, namespace, name, uid)
                self._added.set()
            metrics.set_finished_jobs(self._finished.counts())
            await asyncio.sleep(self._pauses.counting)

    async def _read_quotas(self) -> None:
        said = ""
        while True:
            try:
                self._finished.quotas = await self._cluster.job_quotas()
            except KubernetesError as error:
                if said != (said := str(error)):
                    logger.warning("cannot read how many jobs quotas admit, trying again: %s", error)
            except Exception:
                logger.exception("a defect: cannot read how many jobs quotas admit")
            await asyncio.sleep(self._pauses.quotas)

    async def _write_default_ttls(self) -> None:
        """Write the default time to live into the spec of finished jobs, a few a second: nobody waits for it."""
        while True:
            job = await self._without_ttl.get()
            default = self._policy.ttl_of(job)
            if default is None:
                continue
            try:
                await self._cluster.write_default_ttl(job, default)
            except NotFoundError:
                pass
            except KubernetesError as error:
                logger.warning(
                    "cannot write a job's time to live, which holds all the same: %s", error, extra=log_fields(job)
                )
            except Exception:
                logger.exception("a defect: cannot write a job's time to live", extra=log_fields(job))
            await asyncio.sleep(self._pauses.default_ttls)

    async def _expire_all(self) -> None:
        while True:
            namespace, (name, uid) = await self._due.get()
            try:
                await self._expire(namespace, name, uid)
            except NotFoundError:
                self._forget_failures(uid)
            except KubernetesError as error:
                logger.warning("cannot delete an expired job, trying again: %s", error, extra={"job": name})
                refused = not error.transient or error.webhook_failed
                backoffs = self._refusals if refused else self._backoffs
                self._expire_later(namespace, name, uid, error.retry_after or backoffs.next_pause(uid))
            except Exception:
                logger.exception("a defect: an expired job stays", extra={"job": name})
                self._expire_later(namespace, name, uid, self._backoffs.next_pause(uid))
            finally:
                self._due.done(namespace)

    async def _queue_due(self) -> None:
        """Queue each job once it is due."""
        while True:
            for namespace, name, uid in self._expiries.pop_due(dt.datetime.now(dt.UTC)):
                self._due.put(namespace, (name, uid))
            self._added.clear()
            due = self._expiries.next_due
            pause = None if due is None else (due - dt.datetime.now(dt.UTC)).total_seconds()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._added.wait()

    async def _expire(self, namespace: str, name: str, uid: str) -> None:
        """Delete a job whose time to live is over; its spec may have got another one since it was queued."""
        job = await self._cluster.get_job(namespace, name, uid)
        due = expiry(job, self._policy.ttl_of(job))
        held = held_until(job.spec, job.status, self._policy.webhook_hold)
        if held is not None and held > dt.datetime.now(dt.UTC):
            self.add(job)
            return
        surplus = self._finished.is_surplus(job) and job.status.phase in TERMINAL
        if surplus or (due is not None and due <= dt.datetime.now(dt.UTC)):
            await self._cluster.delete_job(job)
            self._forget_failures(uid)
        else:
            self.add(job)

    def _expire_later(self, namespace: str, name: str, uid: str, seconds: float) -> None:
        self._expiries.add_entry(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds), namespace, name, uid)
        self._added.set()

    def _forget_failures(self, uid: str) -> None:
        self._backoffs.forget(uid)
        self._refusals.forget(uid)
