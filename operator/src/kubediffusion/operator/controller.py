"""The loop: watches wake it, a pass decides, the cluster carries it out. One owner of all state.

What a pass has decided about a job is *assumed* until the API server has answered, as kube-scheduler assumes a
binding: the job is left out of later passes, and changes that the watch tells meanwhile are kept for afterwards.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from kubediffusion.operator import metrics
from kubediffusion.operator.actions import (
    Action,
    Bind,
    CreateWorker,
    DeleteWorker,
    Explain,
    Finish,
    HoldImages,
    JobAction,
    ReportModel,
    Requeue,
)
from kubediffusion.operator.availability import model_status
from kubediffusion.operator.cluster import Cluster, name_of
from kubediffusion.operator.events import Event, Events
from kubediffusion.operator.manifests import WorkerDefaults, template_hash
from kubediffusion.operator.retention import ImageRemover, awaits_image_deletion, expiry
from kubediffusion.operator.scheduling import Knobs, ModelView, deadline, judge, plan_model
from kubediffusion.operator.settings import Settings
from kubediffusion.operator.state import Agenda, NamespaceState
from kubediffusion.operator.statuses import next_status
from kubediffusion.operator.workers import BatchJob, Pod, WorkerState
from kubediffusion.resources import recipe
from kubediffusion.resources.client import ConflictError, KubernetesError, NotFoundError
from kubediffusion.resources.conditions import JobCondition, ModelCondition, ModelReason, WaitingReason, find
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.errors import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Phase
from kubediffusion.resources.transitions import TERMINAL

logger = logging.getLogger(__name__)

STUCK_SECONDS = 60.0
"""A loop that has not turned for so long is not alive."""
REPORT_PERIOD = dt.timedelta(seconds=1)
RETRY_PERIOD = dt.timedelta(seconds=1)
LONGEST_REFUSAL_PAUSE = 60.0
"""Seconds between tries to create a worker that the API server refuses, at most."""
ORPHANS_A_PASS = 200
FRESH = dt.timedelta(seconds=2)
"""A job seen within so long of its creation is new: the moment it is seen says more than its timestamp."""


@dataclass(frozen=True)
class _Told:
    """What a watch has told of a job while a write is under way for it.

    Attributes:
        job: The latest state; None while there was none.
        gone: Whether it has been deleted.
    """

    job: GenerationJob | None
    gone: bool = False


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
        self, cluster: Cluster, events: Events, images: ImageRemover, settings: Settings, defaults: WorkerDefaults
    ) -> None:
        self._cluster = cluster
        self._events = events
        self._images = images
        self._settings = settings
        self._defaults = defaults
        self._knobs = Knobs(
            batches_ahead=settings.batches_ahead,
            explain_after=dt.timedelta(seconds=settings.explain_after_seconds),
            model_grace=dt.timedelta(seconds=settings.model_grace_seconds),
        )
        self._namespaces: dict[str, NamespaceState] = {}
        self._deadlines = Agenda()
        self._expiries = Agenda()
        self._dirty: dict[str, None] = {}
        self._looks: dict[str, dt.datetime] = {}
        self._assumed: dict[str, _Told] = {}
        """Jobs that a write is under way for, by uid, with what the watch has told of them since."""
        self._arrived: dict[str, dt.datetime] = {}
        """When a job was first seen, by uid, until it is first written: its own timestamp has whole seconds only."""
        self._busy: set[str] = set()
        """Workers, models and images that something is under way for."""
        self._reported: dict[str, dt.datetime] = {}
        self._refused: dict[str, int] = {}
        """How often in a row a model's worker was refused by the API server, by the model's uid."""
        self._explanations = settings.explanations_per_second
        self._refilled = time.monotonic()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turned = time.monotonic()
        self.synced = False

    # What the watches tell.

    def observe_job(self, job: GenerationJob, gone: bool) -> None:
        """Take in a GenerationJob as it is now, or that it is gone."""
        if job.uid in self._assumed:
            self._assumed[job.uid] = _Told(None, gone=True) if gone else _Told(job)
            return
        known = self._state(job).jobs.get(job.uid)
        if gone:
            self._state(job).drop_job(job.uid)
            self._arrived.pop(job.uid, None)
        elif known is None or known.metadata.version <= job.metadata.version:
            self._take(job, known)
        self._touch(job.metadata.namespace)

    def observe_model(self, model: DiffusionModel, gone: bool) -> None:
        """Take in a DiffusionModel as it is now, or that it is gone."""
        state = self._state(model)
        state.drop_model(model) if gone else state.put_model(model)
        if gone:
            metrics.forget_model(model.metadata.namespace, model.name)
            self._reported.pop(model.metadata.uid, None)
            self._refused.pop(model.metadata.uid, None)
        self._touch(model.metadata.namespace)

    def observe_batch_job(self, job: BatchJob, gone: bool) -> None:
        """Take in a worker's batch/v1 Job as it is now, or that it is gone."""
        state = self._state(job)
        state.drop_batch_job(job) if gone else state.put_batch_job(job)
        self._touch(job.metadata.namespace)

    def observe_pod(self, pod: Pod, gone: bool) -> None:
        """Take in a worker's Pod as it is now, or that it is gone."""
        state = self._state(pod)
        state.drop_pod(pod) if gone else state.put_pod(pod)
        self._touch(pod.metadata.namespace)

    # The loop.

    async def sync(self) -> None:
        """List the cluster: after it, a pass decides on all there is.

        Jobs come before workers: a job's Pod that the later list does not have is surely gone.
        """
        jobs = await self._cluster.unfinished_jobs()
        await self._list_models()
        for job in jobs.items:
            self.observe_job(job, gone=False)
        await self._list_workers()
        self._turned = time.monotonic()
        self.synced = True

    async def run(self) -> None:
        """Decide and act until cancelled; :meth:`sync` must have come first."""
        resync = asyncio.create_task(self._resync())
        try:
            while True:
                await self._turn()
        finally:
            resync.cancel()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(resync, *self._tasks, return_exceptions=True)

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
        dues = (self._deadlines.next_due, self._expiries.next_due)
        moments = [*self._looks.values(), *(due for due in dues if due is not None)]
        pause = (min(moments) - dt.datetime.now(dt.UTC)).total_seconds() if moments else STUCK_SECONDS / 4
        try:
            async with asyncio.timeout(min(max(pause, 0), STUCK_SECONDS / 4)):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _do_what_is_due(self, now: dt.datetime) -> None:
        for namespace, _, uid in self._deadlines.pop_due(now):
            state = self._namespaces.get(namespace)
            job = state.jobs.get(uid) if state is not None else None
            # One that a write is under way for is judged when that is done.
            if job is not None and uid not in self._assumed:
                self._judge(job, now)
        for namespace, name, uid in self._expiries.pop_due(now):
            self._spawn(self._expire(namespace, name, uid))
        for namespace, look in list(self._looks.items()):
            if look <= now:
                self._dirty[namespace] = None

    def _pass(self, namespace: str, now: dt.datetime) -> None:
        """Decide on one namespace and start what is decided."""
        self._looks.pop(namespace, None)
        state = self._namespaces.get(namespace)
        if state is None:
            # Nothing was left there when a write for it ended.
            return
        if state.settled:
            del self._namespaces[namespace]
            return
        with metrics.PASS_SECONDS.time():
            looks = [self._pass_orphans(state, now), self._pass_suspended(state, now)]
            for view in list(state.views(now)):
                plan = plan_model(view, now, self._knobs, self._budget())
                looks.append(plan.next_look)
                for action in plan.actions:
                    self._start(action)
                looks.append(self._report(view, now))
        pending = [look for look in looks if look is not None]
        if pending:
            self._looks[namespace] = min(pending)

    def _pass_orphans(self, state: NamespaceState, now: dt.datetime) -> dt.datetime | None:
        """See to the jobs whose model does not exist, and give when the first of them has waited long enough."""
        look: dt.datetime | None = None
        for job, missing_since in state.orphans(now, ORPHANS_A_PASS):
            wanted = f"DiffusionModel {job.spec.model!r}" if job.spec.model else "default DiffusionModel"
            due = missing_since + self._knobs.model_grace
            if now >= due:
                there = ", ".join(sorted(state.models)) or "none"
                message = f"Model not available: no {wanted} in namespace {state.name} (there: {there})"
                self._start(Finish(job, Phase.FAILED, ErrorCode.MODEL_NOT_FOUND, message))
                continue
            look = min(look or due, due)
            silent = job.status.phase is Phase.PENDING and find(job.status.conditions, JobCondition.SCHEDULED) is None
            if silent and self._budget():
                self._start(Explain(job, WaitingReason.MODEL_NOT_FOUND, f"no {wanted} exists in {state.name} yet"))
        return look

    def _pass_suspended(self, state: NamespaceState, now: dt.datetime) -> dt.datetime | None:
        """Have suspended jobs say so, and give when to go on where not all may yet."""
        for job in state.silently_suspended:
            if not self._budget():
                return now + RETRY_PERIOD
            self._start(Explain(job, WaitingReason.SUSPENDED, "spec.suspend is true"))
        return None

    def _report(self, view: ModelView, now: dt.datetime) -> dt.datetime | None:
        model = view.model
        metrics.QUEUED.labels(model.metadata.namespace, model.name).set(view.waiting_count)
        for worker_state in WorkerState:
            count = sum(w.state is worker_state for w in view.workers)
            metrics.WORKERS.labels(model.metadata.namespace, model.name, worker_state).set(count)
        status = model_status(view, self._namespaces[model.metadata.namespace].revisions.get(model.name), now)
        if status == model.status:
            return None
        due = self._reported.get(model.metadata.uid, now - REPORT_PERIOD) + REPORT_PERIOD
        changed = find(status.conditions, ModelCondition.AVAILABLE) != find(
            model.status.conditions, ModelCondition.AVAILABLE
        )
        # Whether the model can be used is told at once; numbers are told once a second.
        if now < due and not changed:
            return due
        self._reported[model.metadata.uid] = now
        self._start(ReportModel(model, status))
        return None

    def _budget(self) -> int:
        """Give how many explanations may be written now: a token bucket of one second's worth."""
        rate, now = self._settings.explanations_per_second, time.monotonic()
        self._explanations = min(rate, self._explanations + rate * (now - self._refilled))
        self._refilled = now
        return int(self._explanations)

    # Single jobs.

    def _take(self, job: GenerationJob, known: GenerationJob | None) -> None:
        """Keep a job as it is now, and see to what that asks for."""
        now = dt.datetime.now(dt.UTC)
        self._state(job).put_job(job)
        if job.status.phase in TERMINAL:
            self._tell_of_end(job, known)
            if known is not None:
                # A job that had finished before this operator began may have run on another revision.
                self._learn_revision(job)
            if awaits_image_deletion(job):
                self._remove_images(job)
            elif (due := expiry(job)) is not None:
                self._expiries.add(due, job)
            return
        if known is None:
            created = job.metadata.creation_timestamp
            if created is not None and now - created < FRESH and job.status.queued_at is None:
                self._arrived[job.uid] = now
            if (due := deadline(job)) is not None:
                self._deadlines.add(due, job)
        self._judge(job, now)

    def _judge(self, job: GenerationJob, now: dt.datetime) -> None:
        verdict = judge(job, now)
        if verdict is not None:
            self._start(verdict)

    def _tell_of_end(self, job: GenerationJob, known: GenerationJob | None) -> None:
        if known is None or known.status.phase in TERMINAL:
            return
        if job.status.phase is Phase.FAILED and job.status.error is not None:
            self._events.note(Event(job, "Warning", job.status.error.code, job.status.error.message))
        elif job.status.phase is Phase.CANCELLED and job.status.error is not None:
            self._events.note(Event(job, "Normal", "Cancelled", job.status.error.message))
        for warning in job.status.warnings:
            self._events.note(Event(job, "Warning", "ParametersAdjusted", warning))

    def _learn_revision(self, job: GenerationJob) -> None:
        parameters = job.status.parameters
        if parameters is not None and parameters.model_revision is not None:
            self._state(job).revisions[parameters.model] = parameters.model_revision

    # Writes.

    def _start(self, action: Action) -> None:
        """Have an action carried out in the background, unless one for the same object is under way."""
        match action:
            case Bind() | Requeue() | Finish() | Explain() | HoldImages():
                if action.job.uid not in self._assumed:
                    self._assumed[action.job.uid] = _Told(None)
                    self._spawn(self._write_job(action, self._assume(action)))
            case CreateWorker() | DeleteWorker() | ReportModel():
                key = _key(action)
                if key not in self._busy:
                    self._busy.add(key)
                    self._spawn(self._carry_out(action, key))

    def _assume(self, action: JobAction) -> GenerationJobStatus | None:
        """Show later passes the job as it will be, so that none decides on it twice, and give its new status."""
        state = self._state(action.job)
        if isinstance(action, HoldImages):
            state.drop_job(action.job.uid)
            return None
        if isinstance(action, Explain):
            self._explanations -= 1
        arrived = self._arrived.pop(action.job.uid, None)
        status = next_status(action, dt.datetime.now(dt.UTC), recipe.draw_seed(), arrived)
        if isinstance(action, Bind | Explain):
            state.put_job(action.job.model_copy(update={"status": status}))
        else:
            state.drop_job(action.job.uid)
        return status

    async def _write_job(self, action: JobAction, status: GenerationJobStatus | None) -> None:
        job, name = action.job, name_of(action)
        result: GenerationJob | None = None
        try:
            if status is None:
                result = await self._cluster.hold_images(job)
            else:
                result = await self._cluster.write_status(job, status)
            metrics.ACTIONS.labels(name, "done").inc()
            self._tell_of(action, result)
        except NotFoundError:
            metrics.ACTIONS.labels(name, "gone").inc()
        except ConflictError:
            # It has changed since it was seen: look at it as it is, and decide anew.
            metrics.ACTIONS.labels(name, "conflict").inc()
            result = await self._read_again(job)
        except KubernetesError as error:
            metrics.ACTIONS.labels(name, "error").inc()
            logger.warning("%s failed, trying again: %s", name, error, extra={"job": job.name})
            await asyncio.sleep(error.retry_after or RETRY_PERIOD.total_seconds())
            result = await self._read_again(job)
        finally:
            self._settle(job, result)

    def _settle(self, before: GenerationJob, result: GenerationJob | None) -> None:
        """Replace what was assumed by what is: the newest of the write's answer and what the watch has told since."""
        told = self._assumed.pop(before.uid)
        self._state(before).drop_job(before.uid)
        known = [job for job in (result, told.job) if job is not None]
        if known and not told.gone:
            self._take(max(known, key=lambda job: job.metadata.version), before)
        self._touch(before.metadata.namespace)

    async def _read_again(self, job: GenerationJob) -> GenerationJob | None:
        while True:
            try:
                return await self._cluster.get_job(job.metadata.namespace, job.name)
            except NotFoundError:
                return None
            except KubernetesError as error:
                logger.warning("cannot read the job, trying again: %s", error, extra={"job": job.name})
                await asyncio.sleep(error.retry_after or RETRY_PERIOD.total_seconds())

    def _tell_of(self, action: JobAction, result: GenerationJob) -> None:
        match action:
            case Bind():
                if action.job.status.attempt == 0 and action.job.metadata.creation_timestamp is not None:
                    waited = dt.datetime.now(dt.UTC) - action.job.metadata.creation_timestamp
                    metrics.BINDING_SECONDS.observe(max(waited.total_seconds(), 0))
            case Requeue():
                self._events.note(
                    Event(result, "Warning" if action.counted else "Normal", action.reason, action.message)
                )
            case Explain():
                self._events.note(Event(result, "Normal", action.reason, action.message))
            case _:
                pass

    async def _carry_out(self, action: CreateWorker | DeleteWorker | ReportModel, key: str) -> None:
        name = name_of(action)
        namespace = action.namespace if isinstance(action, DeleteWorker) else action.model.metadata.namespace
        try:
            written = await self._cluster.carry_out(action)
            metrics.ACTIONS.labels(name, "done").inc()
        except KubernetesError as error:
            metrics.ACTIONS.labels(name, "error").inc()
            logger.warning("%s failed, trying again: %s", name, error, extra={"key": key})
            pause = RETRY_PERIOD.total_seconds()
            if isinstance(action, CreateWorker):
                pause = self._note_refusal(action, error)
            # The key stays busy meanwhile, so that no pass starts the same again.
            await asyncio.sleep(error.retry_after or pause)
        else:
            # The answer comes before the watch tells: without it, the next pass would decide the same again.
            if isinstance(written, BatchJob):
                self.observe_batch_job(written, gone=False)
            elif isinstance(written, DiffusionModel) and written.name in self._state(written).models:
                # One that the watch has told to be gone meanwhile stays gone.
                self.observe_model(written, gone=False)
            if isinstance(action, ReportModel):
                self._tell_of_model(action)
            elif isinstance(action, CreateWorker):
                self._refused.pop(action.model.metadata.uid, None)
                self._state(action.model).refusals.pop(action.model.name, None)
        finally:
            self._busy.discard(key)
            self._touch(namespace)

    def _note_refusal(self, action: CreateWorker, error: KubernetesError) -> float:
        """Keep why a worker's Job was refused, for those who wait, and give the seconds until the next try.

        An Event tells of it once, not at every try.
        """
        model = action.model
        count = self._refused[model.metadata.uid] = self._refused.get(model.metadata.uid, 0) + 1
        refusals = self._state(model).refusals
        if refusals.get(model.name) != error.message:
            refusals[model.name] = error.message
            self._events.note(Event(model, "Warning", WaitingReason.WORKER_REFUSED, error.message))
        return min(RETRY_PERIOD.total_seconds() * float(2 ** (count - 1)), LONGEST_REFUSAL_PAUSE)

    def _tell_of_model(self, action: ReportModel) -> None:
        before = find(action.model.status.conditions, ModelCondition.AVAILABLE)
        after = find(action.status.conditions, ModelCondition.AVAILABLE)
        if after is None or (before is not None and before.reason == after.reason):
            return
        bad = after.reason in {ModelReason.LOAD_FAILED, ModelReason.WORKER_FAILED}
        self._events.note(Event(action.model, "Warning" if bad else "Normal", after.reason, after.message))

    async def _expire(self, namespace: str, name: str, uid: str) -> None:
        """Delete a job whose time to live is over; its spec may have got another one since it was noted."""
        while True:
            try:
                job = await self._cluster.get_job(namespace, name)
                due = expiry(job)
                if job.uid != uid or due is None:
                    return
                if due > dt.datetime.now(dt.UTC):
                    self._expiries.add(due, job)
                    self._wake.set()
                    return
                await self._cluster.delete_job(job)
            except NotFoundError:
                return
            except KubernetesError as error:
                logger.warning("cannot delete an expired job, trying again: %s", error, extra={"job": name})
                await asyncio.sleep(error.retry_after or RETRY_PERIOD.total_seconds())
            else:
                return

    def _remove_images(self, job: GenerationJob) -> None:
        if (key := f"images/{job.uid}") not in self._busy:
            self._busy.add(key)
            self._spawn(self._release(job, key))

    async def _release(self, job: GenerationJob, key: str) -> None:
        """Delete a job's images, then let the job itself go."""
        try:
            await self._images.remove(job)
            while True:
                try:
                    await self._cluster.release_images(job)
                except NotFoundError:
                    return
                except KubernetesError as error:
                    logger.warning("cannot release a deleted job, trying again: %s", error, extra={"job": job.name})
                    await asyncio.sleep(error.retry_after or RETRY_PERIOD.total_seconds())
                else:
                    return
        finally:
            self._busy.discard(key)

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

    async def _list_workers(self) -> None:
        batch_jobs, pods = await self._cluster.batch_jobs(), await self._cluster.pods()
        names = set(self._namespaces) | batch_jobs.namespaces | pods.namespaces
        for name in names:
            self._namespace(name).replace_workers(batch_jobs.within(name), pods.within(name))
            self._touch(name)

    async def _list_models(self) -> None:
        models = await self._cluster.models()
        for name in set(self._namespaces) | models.namespaces:
            self._namespace(name).replace_models(models.within(name))
            self._touch(name)

    async def _check_held_jobs(self) -> None:
        """Look at jobs that workers should have and, as the cluster says, have not."""
        listing = await self._cluster.held_jobs()
        listed = {job.uid for job in listing.items}
        for job in [job for state in self._namespaces.values() for job in state.held]:
            if job.uid in listed or job.metadata.version > listing.version or job.uid in self._assumed:
                continue
            found = await self._read_again(job)
            if job.uid in self._assumed:
                continue
            if found is None or found.uid != job.uid:
                self.observe_job(job, gone=True)
            else:
                self.observe_job(found, gone=False)

    def _namespace(self, name: str) -> NamespaceState:
        if name not in self._namespaces:
            self._namespaces[name] = NamespaceState(name, lambda model: template_hash(model, self._defaults))
        return self._namespaces[name]

    def _state(self, item: GenerationJob | DiffusionModel | BatchJob | Pod) -> NamespaceState:
        return self._namespace(item.metadata.namespace)

    def _touch(self, namespace: str) -> None:
        self._dirty[namespace] = None
        self._wake.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a defect: an action ended with an error nobody expected", exc_info=error)


def _key(action: CreateWorker | DeleteWorker | ReportModel) -> str:
    match action:
        case CreateWorker():
            return f"create/{action.model.metadata.uid}/{action.template_hash}/{action.ordinal}"
        case DeleteWorker():
            return f"delete/{action.uid}"
        case ReportModel():
            return f"report/{action.model.metadata.uid}"
