"""Carries out what was decided about jobs: one write at a time for each, whose answer goes to the store.

What fails at one job concerns that job alone: it is kept out of sight for a pause that grows, and is then read and
decided on anew. A defect is said in its Scheduled condition and in an Event. A write that the API server refuses is
said in an Event alone, as the condition would be refused too; a job whose writes are refused again and again ends.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from dataclasses import dataclass, field

from kubediffusion.operator import metrics
from kubediffusion.operator.actions import Bind, Explain, Finish, HoldImages, JobAction, Requeue, SetAside
from kubediffusion.operator.background_tasks import BackgroundTasks
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.events import Event, EventRecorder, events_of_job_write, log_fields
from kubediffusion.operator.job_status import error_status, next_status, operator_failed, status_refused
from kubediffusion.operator.retrying import RETRY_SECONDS
from kubediffusion.operator.store import Store
from kubediffusion.resources.apiserver.errors import ConflictError, KubernetesError, NotFoundError
from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.conditions import WaitingReason
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Phase
from kubediffusion.resources.parameters import draw_seed
from kubediffusion.resources.transitions import TERMINAL

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0
"""Seconds between two tries of what fails at one job, at most."""

MOST_REFUSALS = 8
"""Refused writes in a row after which a job ends: some three minutes, in which a policy may be mended."""


@dataclass
class _JobFailures:
    """What fails at one job, until a write of it is done.

    Attributes:
        backoff: The pauses.
        refusals: Writes that were refused in a row.
        last_message: Message of the last Event.
    """

    backoff: Backoff = field(default_factory=lambda: Backoff(RETRY_SECONDS, LONGEST_PAUSE))
    refusals: int = 0
    last_message: str = ""


class JobExecutor:
    """Carries out actions on jobs.

    Args:
        cluster: Where they are written.
        store: Shows what is assumed while a write is under way, and takes its answer.
        recorder: Takes the Events of what was written.
        tasks: Runs the writes.
    """

    def __init__(self, cluster: Cluster, store: Store, recorder: EventRecorder, tasks: BackgroundTasks) -> None:
        self._cluster = cluster
        self._store = store
        self._recorder = recorder
        self._tasks = tasks
        self._failures: dict[str, _JobFailures] = {}
        """Jobs at which something fails, by uid."""

    def start(self, action: JobAction) -> bool:
        """Begin to write an action, and return whether that was so: not while a write for its job is under way."""
        job = action.job
        if self._store.is_being_written(job.uid):
            return False
        if isinstance(action, SetAside):
            return self._start_aside(job, action.error)
        try:
            status = self._status(action)
        except Exception as error:  # noqa: BLE001 - of any kind: it concerns this job alone
            return self._start_aside(job, error)
        becomes = job.model_copy(update={"status": status}) if isinstance(action, Bind | Explain) else None
        self._store.assume_job(job, becomes)
        self._tasks.create_task(self._write(action, status))
        return True

    def forget_job(self, uid: str) -> None:
        """Drop what is kept of a job that has ended or is gone."""
        self._failures.pop(uid, None)

    def _start_aside(self, job: GenerationJob, error: Exception) -> bool:
        self._store.assume_job(job, None)
        self._tasks.create_task(self._set_aside(job, error))
        return True

    def _status(self, action: Bind | Requeue | Finish | Explain | HoldImages) -> GenerationJobStatus | None:
        """Return the status to write; None where none is."""
        if isinstance(action, HoldImages):
            return None
        now, first_seen = dt.datetime.now(dt.UTC), self._store.pop_first_seen(action.job)
        return next_status(action, now, draw_seed(), first_seen)

    async def _write(self, action: JobAction, status: GenerationJobStatus | None) -> None:
        job, name = action.job, metrics.action_label(action)
        result: GenerationJob | None = None
        try:
            if status is None:
                result = await self._cluster.add_images_finalizer(job)
            else:
                result = await self._cluster.write_status(job, status)
            metrics.ACTIONS.labels(name, "done").inc()
            self._failures.pop(job.uid, None)
            _measure(action)
            self._recorder.record(*events_of_job_write(action, result))
        except NotFoundError:
            metrics.ACTIONS.labels(name, "gone").inc()
        except ConflictError:
            # It has changed since it was seen: read it as it is, and decide anew.
            metrics.ACTIONS.labels(name, "conflict").inc()
            result = await self._cluster.find_job(job)
        except KubernetesError as error:
            metrics.ACTIONS.labels(name, "error").inc()
            logger.warning("%s failed, trying again: %s", name, error, extra={"job": job.name})
            if error.transient and not error.webhook_failed:
                await asyncio.sleep(error.retry_after or RETRY_SECONDS)
            else:
                await self._wait_out_refusal(job, error)
            result = await self._cluster.find_job(job)
        except Exception as error:
            # Only its next change would bring the job back.
            metrics.ACTIONS.labels(name, "error").inc()
            logger.exception("a defect: %s failed, trying again", name, extra={"job": job.name})
            await self._tell_error(job, error)
            result = await self._cluster.find_job(job)
        finally:
            self._store.settle_job(job, result)

    async def _wait_out_refusal(self, job: GenerationJob, error: KubernetesError) -> None:
        """Record an Event for a refused write, and wait. After ``MOST_REFUSALS`` in a row, end the job.

        A webhook that does not answer has refused nothing: such a job is tried until it does.
        """
        failures = self._failures.setdefault(job.uid, _JobFailures())
        failures.refusals += not error.webhook_failed
        self._store.hide_job(job)
        message = status_refused(error.message)
        self._record(job, ErrorCode.STATUS_REFUSED, message)
        if failures.refusals >= MOST_REFUSALS and await self._fail(job, message):
            return
        await asyncio.sleep(failures.backoff.next_pause())

    async def _fail(self, job: GenerationJob, message: str) -> bool:
        """Fail a job whose writes are refused, by another write than those, and return whether it was accepted."""
        finish = Finish(job, Phase.FAILED, ErrorCode.STATUS_REFUSED, message)
        try:
            await self._cluster.write_status(job, next_status(finish, dt.datetime.now(dt.UTC), draw_seed()))
        except KubernetesError:
            # What refuses this write as well may let the next try pass; the job says already what refuses it.
            return False
        return True

    async def _set_aside(self, job: GenerationJob, error: Exception) -> None:
        """Keep a job at which the operator failed out of sight for a pause, then read it anew."""
        result: GenerationJob | None = None
        try:
            logger.error("a defect: the operator fails at a job, trying again", exc_info=error, extra=log_fields(job))
            await self._tell_error(job, error)
            result = await self._cluster.find_job(job)
        finally:
            self._store.settle_job(job, result)

    async def _tell_error(self, job: GenerationJob, error: Exception) -> None:
        """Report a defect in the status of the job that it concerns, if that can be written, and wait."""
        failures = self._failures.setdefault(job.uid, _JobFailures())
        self._store.hide_job(job)
        message = operator_failed(error)
        self._record(job, WaitingReason.INTERNAL_ERROR, message)
        if job.status.phase not in TERMINAL:
            try:
                await self._cluster.write_status(job, error_status(job, message, dt.datetime.now(dt.UTC)))
            except KubernetesError as refusal:
                logger.warning("cannot tell a job of a defect: %s", refusal, extra=log_fields(job))
        await asyncio.sleep(failures.backoff.next_pause())

    def _record(self, job: GenerationJob, reason: str, message: str) -> None:
        """Count an error at a job, and record one Event of it, not one for every try."""
        metrics.ERRORS.labels("GenerationJob").inc()
        failures = self._failures.setdefault(job.uid, _JobFailures())
        if failures.last_message != message:
            failures.last_message = message
            self._recorder.record(Event(job, "Warning", reason, message))


def _measure(action: JobAction) -> None:
    created = action.job.metadata.creation_timestamp
    if isinstance(action, Bind) and action.job.status.attempt == 0 and created is not None:
        waited = dt.datetime.now(dt.UTC) - created
        metrics.BINDING_SECONDS.observe(max(waited.total_seconds(), 0))
