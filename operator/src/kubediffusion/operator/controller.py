"""The loop: watches wake it, a pass decides, the cluster carries it out. One owner of all state."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time

from kubediffusion.operator import metrics
from kubediffusion.operator.actions import Action, CreateWorker, DeleteWorker, Explain, ReportModel
from kubediffusion.operator.background_tasks import BackgroundTasks
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.deadline_queue import DeadlineQueue
from kubediffusion.operator.events import EventRecorder
from kubediffusion.operator.job_writes import JobWrites
from kubediffusion.operator.manifests import WorkerDefaults, template_hash
from kubediffusion.operator.orphaned_jobs import decide_orphaned_jobs, explain_suspended_jobs
from kubediffusion.operator.retention import ImageRemover, Retention
from kubediffusion.operator.scheduling import deadline, decide_termination, schedule_model
from kubediffusion.operator.settings import Settings
from kubediffusion.operator.state import Namespaces, NamespaceState, ObjectList
from kubediffusion.operator.telling import ModelReports, Teller, TokenBucket
from kubediffusion.operator.views import Decision, ModelView, SchedulerOptions
from kubediffusion.operator.watching import isolate_errors
from kubediffusion.operator.worker_writes import WorkerWrites
from kubediffusion.operator.workers import BatchJob, Pod
from kubediffusion.resources.client import KubernetesError
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.transitions import TERMINAL

logger = logging.getLogger(__name__)

PASS_PAUSE = 0.01
"""Seconds from one pass to the next at least. A pass looks at all workers and at the head of each queue, and in a burst
there would be one for nearly every event; whoever comes after a pause longer than this is served at once."""

STUCK_SECONDS = 60.0
"""A loop that has not turned for so long is not alive."""


class Controller:
    """Owner of the operator's state.

    Args:
        cluster: Reads and writes.
        events: Events for people.
        images: Deletes images.
        settings: The operator's settings.
        defaults: What the settings add to workers.
    """

    def __init__(
        self,
        cluster: Cluster,
        events: EventRecorder,
        images: ImageRemover,
        settings: Settings,
        defaults: WorkerDefaults,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._options = SchedulerOptions(
            batches_ahead=settings.batches_ahead,
            explain_after=dt.timedelta(seconds=settings.explain_after_seconds),
            model_grace=dt.timedelta(seconds=settings.model_grace_seconds),
        )
        node_grace = dt.timedelta(seconds=settings.node_grace_seconds)
        self._namespaces = Namespaces(lambda model: template_hash(model, defaults), node_grace)
        self._background = BackgroundTasks()
        self._teller = Teller(events)
        self._reports = ModelReports()
        self._budget = TokenBucket(settings.explanations_per_second)
        self._retention = Retention(cluster, images)
        self._job_writes = JobWrites(cluster, self._namespaces, self._background, self._teller, self._on_settled)
        self._worker_writes = WorkerWrites(cluster, self._namespaces, self._background, self._teller, self._touch)
        self._deadlines = DeadlineQueue()
        self._dirty: dict[str, None] = {}
        """Namespaces to decide on, in the order in which something changed there."""
        self._rechecks: dict[str, dt.datetime] = {}
        """When to decide on a namespace although nothing changes there."""
        self._wake = asyncio.Event()
        self._turned = time.monotonic()
        self.synced = False

    # What the watches tell.

    def observe_job(self, job: GenerationJob, gone: bool) -> None:
        """Take in a GenerationJob as it is now, or that it is gone."""
        if job.uid in self._job_writes:
            self._job_writes.keep(job, gone)
            return
        if self._job_writes.is_stale(job, gone):
            return
        state = self._namespaces.of(job)
        known = state.jobs.get(job.uid)
        if gone:
            state.drop_job(job.uid)
            self._forget(job.uid)
        elif known is None or known.metadata.version <= job.metadata.version:
            self._take(job, known)
        self._touch(job.metadata.namespace)

    def observe_model(self, model: DiffusionModel, gone: bool) -> None:
        """Take in a DiffusionModel as it is now, or that it is gone."""
        state = self._namespaces.of(model)
        state.drop_model(model) if gone else state.put_model(model)
        if gone:
            self._forget_model(model)
        self._touch(model.metadata.namespace)

    def observe_batch_job(self, job: BatchJob, gone: bool) -> None:
        """Take in a worker's batch/v1 Job as it is now, or that it is gone."""
        state = self._namespaces.of(job)
        state.drop_batch_job(job) if gone else state.put_batch_job(job)
        self._touch(job.metadata.namespace)

    def observe_pod(self, pod: Pod, gone: bool) -> None:
        """Take in a worker's Pod as it is now, or that it is gone."""
        state = self._namespaces.of(pod)
        state.drop_pod(pod) if gone else state.put_pod(pod)
        self._touch(pod.metadata.namespace)

    def _take(self, job: GenerationJob, known: GenerationJob | None) -> None:
        """Keep a job as it is now, and see to what that asks for."""
        state, now = self._namespaces.of(job), dt.datetime.now(dt.UTC)
        state.put_job(job)
        if job.status.phase in TERMINAL:
            self._teller.job_ended(job, known)
            if known is not None:
                # A job that had finished before this operator began may have run on another revision.
                state.learn_revision(job)
            self._deadlines.drop(job.uid)
            self._retention.add(job)
            return
        if known is None:
            self._job_writes.arrived(job, now)
            if (due := deadline(job)) is not None:
                self._deadlines.add(due, job)
        self._terminate_if_due(job, now)

    def _forget(self, uid: str) -> None:
        """Drop what is kept beside the state of a job that is gone."""
        self._job_writes.forget(uid)
        self._deadlines.drop(uid)
        self._retention.forget(uid)

    def _forget_model(self, model: DiffusionModel) -> None:
        """Drop what is kept beside the state of a model that is gone."""
        self._reports.forget(model)
        self._worker_writes.forget(model)

    def _terminate_if_due(self, job: GenerationJob, now: dt.datetime) -> None:
        if (verdict := decide_termination(job, now)) is not None:
            self._start(verdict)

    def _on_settled(self, before: GenerationJob, after: GenerationJob | None) -> None:
        if after is not None:
            self._take(after, before)
        else:
            self._forget(before.uid)
        self._touch(before.metadata.namespace)

    def _touch(self, namespace: str) -> None:
        """Have a pass decide on a namespace soon."""
        self._dirty[namespace] = None
        self._wake.set()

    def jobs_in(self, namespace: str | None) -> list[GenerationJob]:
        """Return the unfinished jobs that are known; None asks for those of all namespaces."""
        states = [state for state in self._namespaces.values() if namespace in {None, state.name}]
        return [job for state in states for job in state.jobs.values()]

    # The loop.

    async def sync(self) -> None:
        """List the cluster: after it, a pass decides on all there is.

        Jobs come before workers: a job's Pod that the later list does not have is surely gone.
        """
        jobs = await self._cluster.unfinished_jobs()
        await self._list_models()
        observe = isolate_errors(self.observe_job)
        for job in jobs.items:
            observe(job, False)
        await self._list_workers()
        self._turned = time.monotonic()
        self.synced = True

    async def run(self) -> None:
        """Decide and act until cancelled; :meth:`sync` must have come first."""
        self._background.create_task(self._resync())
        self._background.create_task(self._retention.run())
        try:
            while True:
                await self._turn()
        finally:
            await self._background.close()

    def problem(self) -> str | None:
        """Tell why the loop should be restarted; None while it turns, or waits for its first list."""
        if not self.synced:
            return None
        still = time.monotonic() - self._turned
        return f"no scheduling pass for {still:.0f} s" if still > STUCK_SECONDS else None

    async def _turn(self) -> None:
        now = dt.datetime.now(dt.UTC)
        self._do_what_is_due(now)
        dirty, self._dirty = self._dirty, {}
        for namespace in dirty:
            self._pass(namespace, now)
        self._turned = time.monotonic()
        metrics.LAST_PASS.set_to_current_time()
        due = self._deadlines.next_due
        moments = [*self._rechecks.values(), *([due] if due is not None else [])]
        pause = (min(moments) - dt.datetime.now(dt.UTC)).total_seconds() if moments else STUCK_SECONDS / 4
        try:
            async with asyncio.timeout(min(max(pause, 0), STUCK_SECONDS / 4)):
                await self._wake.wait()
        except TimeoutError:
            pass
        await asyncio.sleep(self._turned + PASS_PAUSE - time.monotonic())
        self._wake.clear()

    def _do_what_is_due(self, now: dt.datetime) -> None:
        for namespace, _, uid in self._deadlines.pop_due(now):
            state = self._namespaces.get(namespace)
            job = state.jobs.get(uid) if state is not None else None
            # One that a write is under way for is judged when that is done.
            if job is not None and uid not in self._job_writes:
                self._terminate_if_due(job, now)
        for namespace, recheck in list(self._rechecks.items()):
            if recheck <= now:
                self._dirty[namespace] = None

    def _pass(self, namespace: str, now: dt.datetime) -> None:
        """Decide on one namespace and start what is decided."""
        self._rechecks.pop(namespace, None)
        state = self._namespaces.get(namespace)
        if state is None:
            # Nothing was left there when a write for it ended.
            return
        if state.settled:
            del self._namespaces[namespace]
            return
        with metrics.PASS_SECONDS.time():
            rechecks = [
                self._execute(decide_orphaned_jobs(state, now, self._options, self._budget.left)),
                self._execute(explain_suspended_jobs(state, now, self._budget.left)),
            ]
            for view in list(state.views(now)):
                rechecks.append(self._execute(schedule_model(view, now, self._options, self._budget.left)))
                rechecks.append(self._report(state, view, now))
        if pending := [recheck for recheck in rechecks if recheck is not None]:
            self._rechecks[namespace] = min(pending)

    def _execute(self, plan: Decision) -> dt.datetime | None:
        """Start what a plan says, and give when to look again."""
        for action in plan.actions:
            self._start(action)
        return plan.recheck_at

    def _report(self, state: NamespaceState, view: ModelView, now: dt.datetime) -> dt.datetime | None:
        """Report on a model, or give when to."""
        report = self._reports.next_report(view, state.revisions.get(view.model.name), now)
        if isinstance(report, ReportModel):
            self._start(report)
            return None
        return report

    def _start(self, action: Action) -> None:
        """Have an action carried out in the background, unless one for the same object is under way."""
        if isinstance(action, CreateWorker | DeleteWorker | ReportModel):
            self._worker_writes.start(action)
        elif self._job_writes.start(action) and isinstance(action, Explain):
            self._budget.spend()

    # Housekeeping.

    async def _resync(self) -> None:
        """List anew what a watch does not tell of: kopf's, after an outage, tells what is there, not what is gone.

        A job that waits needs none of this: that it is gone shows when it is bound.
        """
        while True:
            await asyncio.sleep(self._settings.resync_seconds)
            try:
                await self._list_models()
                await self._list_workers()
                await self._check_held_jobs()
            except KubernetesError as error:
                logger.warning("cannot list the cluster anew: %s", error)
            except Exception:
                logger.exception("a defect: cannot list the cluster anew")

    async def _list_workers(self) -> None:
        batch_jobs, pods = await self._cluster.batch_jobs(), await self._cluster.pods()
        for name in set(self._namespaces) | batch_jobs.namespaces | pods.namespaces:
            self._namespaces[name].replace_workers(batch_jobs.within(name), pods.within(name))
            self._touch(name)

    async def _list_models(self) -> None:
        self._take_models(await self._cluster.models())

    def _take_models(self, models: ObjectList[DiffusionModel]) -> None:
        for name in set(self._namespaces) | models.namespaces:
            for gone in self._namespaces[name].replace_models(models.within(name)):
                self._forget_model(gone)
            self._touch(name)

    async def _check_held_jobs(self) -> None:
        """Look at jobs that workers should have and, as the cluster says, have not."""
        listing = await self._cluster.held_jobs()
        listed = {job.uid for job in listing.items}
        for job in [job for state in self._namespaces.values() for job in state.held]:
            if job.uid in listed or job.metadata.version > listing.version or job.uid in self._job_writes:
                continue
            self._correct(job, await self._cluster.find_job(job))

    def _correct(self, job: GenerationJob, found: GenerationJob | None) -> None:
        """Take in what was read of a job, unless a watch has told of its end, or a write has begun, meanwhile."""
        state = self._namespaces.get(job.metadata.namespace)
        if state is not None and job.uid in state.jobs and job.uid not in self._job_writes:
            isolate_errors(self.observe_job)(found or job, found is None)
