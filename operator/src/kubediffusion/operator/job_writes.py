"""Writes of what was decided about jobs, and what is assumed of them until the API server has answered.

What a pass has decided about a job is *assumed*, as kube-scheduler assumes a binding: later passes see the job as it
will be or not at all, and what the watch tells of it meanwhile is kept for afterwards.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import dataclass

from kubediffusion.operator import metrics
from kubediffusion.operator.actions import Bind, Explain, HoldImages, JobAction
from kubediffusion.operator.background_tasks import BackgroundTasks
from kubediffusion.operator.cluster import RETRY_SECONDS, Cluster, action_name
from kubediffusion.operator.job_status import next_status
from kubediffusion.operator.state import Namespaces
from kubediffusion.operator.telling import Teller
from kubediffusion.resources import recipe
from kubediffusion.resources.client import ConflictError, KubernetesError, NotFoundError
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus
from kubediffusion.resources.transitions import TERMINAL

logger = logging.getLogger(__name__)

FRESH = dt.timedelta(seconds=2)
"""A job seen within so long of its creation is new: the moment it is seen says more than its timestamp."""

OnSettled = Callable[[GenerationJob, GenerationJob | None], None]
"""Takes a job as it was when a write for it began, and as it is now; None when it is gone."""


@dataclass(frozen=True)
class _Told:
    """What a watch has told of a job while a write is under way for it.

    Attributes:
        job: The latest state; None while there was none.
        gone: Whether it has been deleted.
    """

    job: GenerationJob | None
    gone: bool = False


class JobWrites:
    """Carries out actions on jobs, one a job at a time.

    Args:
        cluster: Where they are written.
        namespaces: What the passes see.
        background: Where the writes run.
        teller: Told of what was written.
        on_settled: Called when a write has ended, whatever became of it.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespaces: Namespaces,
        background: BackgroundTasks,
        teller: Teller,
        on_settled: OnSettled,
    ) -> None:
        self._cluster = cluster
        self._namespaces = namespaces
        self._background = background
        self._teller = teller
        self._on_settled = on_settled
        self._assumed: dict[str, _Told] = {}
        """Jobs that a write is under way for, by uid."""
        self._ended: dict[str, int] = {}
        """The version that a write ended a job with, by uid, until the watch has told of that one or a later one."""
        self._arrived: dict[str, dt.datetime] = {}
        """When a job was first seen, by uid, until it is first written: its own timestamp has whole seconds only."""

    def __contains__(self, uid: str) -> bool:
        """Return whether a write is under way for a job."""
        return uid in self._assumed

    def keep(self, job: GenerationJob, gone: bool) -> None:
        """Keep what the watch tells of a job that a write is under way for."""
        self._assumed[job.uid] = _Told(None, gone=True) if gone else _Told(job)

    def is_stale(self, job: GenerationJob, gone: bool) -> bool:
        """Return whether a job is told as it was before a write ended it: a list may be older than the write's answer.

        Once the end itself has been told, nothing older will be, and nothing is kept.
        """
        ended = self._ended.get(job.uid)
        if ended is None:
            return False
        if not gone and job.metadata.version < ended:
            return True
        del self._ended[job.uid]
        return False

    def arrived(self, job: GenerationJob, now: dt.datetime) -> None:
        """Note that a job is seen for the first time."""
        created = job.metadata.creation_timestamp
        if created is not None and now - created < FRESH and job.status.queued_at is None:
            self._arrived[job.uid] = now

    def forget(self, uid: str) -> None:
        """Drop what is kept of a job that is gone."""
        self._arrived.pop(uid, None)

    def start(self, action: JobAction) -> bool:
        """Have an action written, unless a write is under way for its job, and tell whether it is."""
        if action.job.uid in self._assumed:
            return False
        self._assumed[action.job.uid] = _Told(None)
        self._background.create_task(self._write(action, self._assume(action)))
        return True

    def _assume(self, action: JobAction) -> GenerationJobStatus | None:
        """Show later passes the job as it will be, so that none decides on it twice, and give its new status."""
        state = self._namespaces.of(action.job)
        if isinstance(action, HoldImages):
            state.drop_job(action.job.uid)
            return None
        arrived = self._arrived.pop(action.job.uid, None)
        status = next_status(action, dt.datetime.now(dt.UTC), recipe.draw_seed(), arrived)
        if isinstance(action, Bind | Explain):
            state.put_job(action.job.model_copy(update={"status": status}))
        else:
            state.drop_job(action.job.uid)
        return status

    async def _write(self, action: JobAction, status: GenerationJobStatus | None) -> None:
        job, name = action.job, action_name(action)
        result: GenerationJob | None = None
        try:
            if status is None:
                result = await self._cluster.hold_images(job)
            else:
                result = await self._cluster.write_status(job, status)
            metrics.ACTIONS.labels(name, "done").inc()
            self._teller.job_written(action, result)
        except NotFoundError:
            metrics.ACTIONS.labels(name, "gone").inc()
        except ConflictError:
            # It has changed since it was seen: look at it as it is, and decide anew.
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
            self._settle(job, result)

    def _settle(self, before: GenerationJob, result: GenerationJob | None) -> None:
        """Replace what was assumed by what is: the newest of the write's answer and what the watch has told since."""
        told = self._assumed.pop(before.uid)
        self._namespaces.of(before).drop_job(before.uid)
        # Of two of one version the watch's: what it has told, it does not tell again.
        known = [job for job in (told.job, result) if job is not None and not told.gone]
        now = max(known, key=lambda job: job.metadata.version, default=None)
        if now is not None and now is not told.job and now.status.phase in TERMINAL:
            self._ended[now.uid] = now.metadata.version
        self._on_settled(before, now)
