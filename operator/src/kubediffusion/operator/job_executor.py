"""Carries out what was decided about jobs: one write at a time for each, whose answer goes to the store."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging

from kubediffusion.operator import metrics
from kubediffusion.operator.actions import Bind, Explain, HoldImages, JobAction
from kubediffusion.operator.background_tasks import BackgroundTasks
from kubediffusion.operator.cluster import RETRY_SECONDS, Cluster
from kubediffusion.operator.events import EventRecorder, events_of_job_write
from kubediffusion.operator.job_status import next_status
from kubediffusion.operator.store import Store
from kubediffusion.resources.apiserver.errors import ConflictError, KubernetesError, NotFoundError
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus
from kubediffusion.resources.parameters import draw_seed

logger = logging.getLogger(__name__)


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

    def start(self, action: JobAction) -> bool:
        """Begin to write an action, and return whether that was so: not while a write for its job is under way."""
        job = action.job
        if self._store.is_being_written(job.uid):
            return False
        if isinstance(action, HoldImages):
            status, becomes = None, None
        else:
            now, first_seen = dt.datetime.now(dt.UTC), self._store.pop_first_seen(job)
            status = next_status(action, now, draw_seed(), first_seen)
            becomes = job.model_copy(update={"status": status}) if isinstance(action, Bind | Explain) else None
        self._store.assume_job(job, becomes)
        self._tasks.create_task(self._write(action, status))
        return True

    async def _write(self, action: JobAction, status: GenerationJobStatus | None) -> None:
        job, name = action.job, metrics.action_label(action)
        result: GenerationJob | None = None
        try:
            if status is None:
                result = await self._cluster.hold_images(job)
            else:
                result = await self._cluster.write_status(job, status)
            metrics.ACTIONS.labels(name, "done").inc()
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
            await asyncio.sleep(error.retry_after or RETRY_SECONDS)
            result = await self._cluster.find_job(job)
        except Exception:
            # Only its next change would bring the job back.
            metrics.ACTIONS.labels(name, "error").inc()
            logger.exception("a defect: %s failed, trying again", name, extra={"job": job.name})
            await asyncio.sleep(RETRY_SECONDS)
            result = await self._cluster.find_job(job)
        finally:
            self._store.settle_job(job, result)


def _measure(action: JobAction) -> None:
    created = action.job.metadata.creation_timestamp
    if isinstance(action, Bind) and action.job.status.attempt == 0 and created is not None:
        waited = dt.datetime.now(dt.UTC) - created
        metrics.BINDING_SECONDS.observe(max(waited.total_seconds(), 0))
