"""The scheduling loop: a change in the store wakes it, a pass decides, the executor carries out what was decided."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial

from kubediffusion.operator import metrics
from kubediffusion.operator.actions import Explain, ReportAdapter, ReportModel, SetAside
from kubediffusion.operator.adapter_reports import adapter_status, observed_of
from kubediffusion.operator.changes import JobChange
from kubediffusion.operator.deadline_queue import DeadlineQueue
from kubediffusion.operator.events import EventRecorder, events_of_job_end
from kubediffusion.operator.executor import ActionExecutor
from kubediffusion.operator.image_releases import awaits_image_deletion
from kubediffusion.operator.job_status import explain_suspended_jobs
from kubediffusion.operator.jobs_without_adapter import decide_jobs_without_adapter
from kubediffusion.operator.jobs_without_model import JOBS_A_PASS, decide_jobs_without_model
from kubediffusion.operator.model_status import error_status, model_status
from kubediffusion.operator.namespace_state import NamespaceState
from kubediffusion.operator.rate import AdapterReportRate, ErrorBackoffs, ReportRate, TokenBucket
from kubediffusion.operator.retention import Retention
from kubediffusion.operator.scheduling import deadline, decide_termination, schedule_model
from kubediffusion.operator.snapshots import Decision, ModelSnapshot, SchedulerOptions
from kubediffusion.operator.store import Store
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.objects import KubernetesObject
from kubediffusion.resources.transitions import TERMINAL

logger = logging.getLogger(__name__)

PASS_PAUSE = 0.01
"""Seconds from one pass to the next at least. A pass looks at all workers and at the head of each queue, and in a burst
there would be one for nearly every event; whoever comes after a pause longer than this is served at once."""

LONGEST_PASS_PAUSE = 0.05
"""Seconds from one pass to the next at most, however long a pass takes."""

_PAUSE_PER_PASS = 9.0
"""How many times as long as a pass the pause after it is: passes take a tenth of the time of a busy operator, which has
to read and to write as well."""

STUCK_SECONDS = 60.0
"""A loop that has not turned for so long is not alive."""


class SchedulingLoop:
    """Decides on what has changed in the store, and on what is due although nothing has.

    Args:
        store: What is known of the cluster.
        executor: Carries out what is decided.
        retention: Takes the jobs that have finished.
        recorder: Takes the Events of jobs that have ended.
        options: Settings of the scheduler.
        explanations_per_second: How many jobs a second may be told why they wait.
    """

    def __init__(
        self,
        store: Store,
        executor: ActionExecutor,
        retention: Retention,
        recorder: EventRecorder,
        options: SchedulerOptions,
        explanations_per_second: float,
    ) -> None:
        self._store = store
        self._executor = executor
        self._retention = retention
        self._recorder = recorder
        self._options = options
        self._explanations = TokenBucket(explanations_per_second)
        self._report_rate = ReportRate()
        self._adapter_rate = AdapterReportRate()
        self._deadlines = DeadlineQueue()
        self._errors = ErrorBackoffs()
        self._rechecks: dict[str, dt.datetime] = {}
        """When to decide on a namespace although nothing changes there."""
        self._turned: float | None = None
        self._took = 0.0
        """Seconds that the last turn took."""

    async def run(self) -> None:
        """Decide until cancelled."""
        self._turned = time.monotonic()
        try:
            while True:
                began = time.monotonic()
                self._turn(dt.datetime.now(dt.UTC))
                self._turned = time.monotonic()
                self._took = self._turned - began
                metrics.LAST_PASS.set_to_current_time()
                await self._wait()
        finally:
            await self._executor.close()

    def problem(self) -> str | None:
        """Return why the loop should be restarted; None while it turns, or has not begun."""
        if self._turned is None:
            return None
        still = time.monotonic() - self._turned
        return f"no scheduling pass for {still:.0f} s" if still > STUCK_SECONDS else None

    async def _wait(self) -> None:
        """Wait until something has changed or is due, and for the pause between two passes."""
        due = self._deadlines.next_due
        moments = [*self._rechecks.values(), *([due] if due is not None else [])]
        pause = (min(moments) - dt.datetime.now(dt.UTC)).total_seconds() if moments else STUCK_SECONDS / 4
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(max(pause, 0), STUCK_SECONDS / 4)):
                await self._store.wait_for_change()
        except TimeoutError:
            pass  # something is due
        await asyncio.sleep(began + pass_pause(self._took) - time.monotonic())

    def _turn(self, now: dt.datetime) -> None:
        changes = self._store.take_changes()
        for failed in changes.errors:
            self._tell_error(failed.item, failed.error)
        for change in changes.jobs:
            try:
                self._follow(change, now)
            except Exception as error:  # noqa: BLE001 - of any kind: it concerns this job alone
                self._tell_error(change.after or change.before or change.uid, error)
        for model in changes.deleted_models:
            metrics.forget_model(model)
            self._report_rate.forget_model(model)
            self._executor.forget_model(model)
            self._errors.forget(model.uid)
        for adapter in changes.deleted_adapters:
            self._adapter_rate.forget(adapter)
            self._executor.forget_adapter(adapter)
            self._errors.forget(adapter.uid)
        for namespace, _, uid in self._deadlines.pop_due(now):
            self._terminate_if_due(self._store.job(namespace, uid), now)
        due = (namespace for namespace, recheck_at in self._rechecks.items() if recheck_at <= now)
        for namespace in changes.namespaces | dict.fromkeys(due):
            self._pass(namespace, now)

    def _follow(self, change: JobChange, now: dt.datetime) -> None:
        """Set or drop the deadlines of a job that has changed, and end it if it is cancelled or too late."""
        job = change.after
        if job is None:
            self._deadlines.remove(change.uid)
            self._retention.remove(change.uid)
            self._executor.forget_job(change.uid)
        elif job.status.phase in TERMINAL:
            self._deadlines.remove(job.uid)
            self._executor.forget_job(job.uid)
            self._retention.add(job)
            if change.before is not None:
                self._recorder.record(*events_of_job_end(job))
        else:
            if change.before is None and (due := deadline(job)) is not None:
                self._deadlines.add(due, job)
            if awaits_image_deletion(job):
                # It ends in a moment; where that may not be written, its images must not hold it for ever.
                self._retention.add(job)
            self._terminate_if_due(self._store.job(job.metadata.namespace, job.uid), now)

    def _terminate_if_due(self, job: GenerationJob | None, now: dt.datetime) -> None:
        # One that a write is under way for changes when that has ended.
        if job is not None and (finish := decide_termination(job, now)) is not None:
            self._executor.start(finish)

    def _pass(self, namespace: str, now: dt.datetime) -> None:
        """Decide on one namespace and start what is decided."""
        self._rechecks.pop(namespace, None)
        state = self._store.namespace(namespace)
        if state is None:
            return
        with metrics.PASS_SECONDS.time():
            due = list(self._decide(state, now))
        if due:
            self._rechecks[namespace] = min(due)

    def _decide(self, state: NamespaceState, now: dt.datetime) -> Iterator[dt.datetime]:
        """Decide on a namespace and on each of its models, and yield when to decide again.

        An error at one model, or beside the models, concerns that alone.
        """
        yield from self._isolated(state.name, None, now, lambda: self._decide_on_unqueued_jobs(state, now))
        snapshots: list[ModelSnapshot] = []
        yield from self._isolated(
            f"{state.name}/models", None, now, lambda: snapshots.extend(state.model_snapshots(now))
        )
        for snapshot in snapshots:
            yield from self._isolated(
                snapshot.model.uid, snapshot.model, now, partial(self._decide_on_model, state, snapshot, now)
            )
        by_model = (
            {snapshot.model.name: (snapshot, observed_of(snapshot)) for snapshot in snapshots}
            if state.adapters.items
            else {}
        )
        for adapter in state.adapters.items.values():
            of, observed = by_model.get(adapter.spec.model, (None, None))
            if not self._adapter_rate.is_settled(adapter, observed):
                report = partial(self._report_adapter, adapter, of, observed, now)
                yield from self._isolated(adapter.uid, adapter, now, report)

    def _isolated(
        self, key: str, item: KubernetesObject | None, now: dt.datetime, decide: Callable[[], dt.datetime | None]
    ) -> Iterator[dt.datetime]:
        """Decide unless that has just failed, and yield when to decide again; an error is put on its object."""
        retry_at = self._errors.retry_at(key)
        if retry_at is not None and now < retry_at:
            yield retry_at
            return
        try:
            recheck_at = decide()
        except Exception as error:  # noqa: BLE001 - of any kind: it concerns this object alone
            self._tell_error(item or key, error)
            yield self._errors.record(key, now)
            return
        self._errors.forget(key)
        if recheck_at is not None:
            yield recheck_at

    def _tell_error(self, item: KubernetesObject | str, error: Exception) -> None:
        """Put an error on the object that it concerns, where it has a status of ours, else in log and metric alone."""
        match item:
            case GenerationJob():
                self._executor.start(SetAside(item, error))
                return
            case DiffusionModel():
                kind, name = "DiffusionModel", f"{item.metadata.namespace}/{item.name}"
                self._executor.start(ReportModel(item, error_status(item, error, dt.datetime.now(dt.UTC))))
            case KubernetesObject():
                kind, name = type(item).__name__, f"{item.metadata.namespace}/{item.name}"
            case str():
                kind, name = "Namespace", item
        metrics.ERRORS.labels(kind).inc()
        logger.error("a defect: the operator fails at %s %s, trying again", kind, name, exc_info=error)

    def _decide_on_unqueued_jobs(self, state: NamespaceState, now: dt.datetime) -> dt.datetime | None:
        snapshot = state.snapshot(now, JOBS_A_PASS)
        rechecks = [
            self._start(decide_jobs_without_model(snapshot, now, self._options, self._explanations.available)),
            self._start(decide_jobs_without_adapter(snapshot, now, self._options, self._explanations.available)),
            self._start(explain_suspended_jobs(snapshot, now, self._explanations.available)),
        ]
        return _earliest(rechecks)

    def _decide_on_model(self, state: NamespaceState, snapshot: ModelSnapshot, now: dt.datetime) -> dt.datetime | None:
        decision = schedule_model(snapshot, now, self._options, self._explanations.available)
        return _earliest([self._start(decision), self._report(state, snapshot, now)])

    def _start(self, decision: Decision) -> dt.datetime | None:
        """Start what was decided, and return when to decide again."""
        for action in decision.actions:
            if self._executor.start(action) and isinstance(action, Explain):
                self._explanations.take()
        return decision.recheck_at

    def _report(self, state: NamespaceState, snapshot: ModelSnapshot, now: dt.datetime) -> dt.datetime | None:
        """Start the report of a model's status that is due; return when the next one is."""
        metrics.set_model_gauges(snapshot)
        status = model_status(snapshot, state.revisions.get(snapshot.model.name), now)
        report = self._report_rate.next_report(snapshot.model, status, now)
        if isinstance(report, ReportModel):
            self._executor.start(report)
            return None
        return report

    def _report_adapter(
        self, adapter: LoRAAdapter, snapshot: ModelSnapshot | None, observed: object, now: dt.datetime
    ) -> dt.datetime | None:
        """Start the report of an adapter's status that is due; return when the next one is."""
        report = self._adapter_rate.next_report(adapter, adapter_status(adapter, snapshot, now), now)
        if report is None:
            self._adapter_rate.settle(adapter, observed)
        if isinstance(report, ReportAdapter):
            self._executor.start(report)
            return None
        return report


def pass_pause(took: float) -> float:
    """Return the seconds to leave between two passes after one that took some seconds."""
    return min(max(PASS_PAUSE, _PAUSE_PER_PASS * took), max(PASS_PAUSE, LONGEST_PASS_PAUSE))


def _earliest(moments: list[dt.datetime | None]) -> dt.datetime | None:
    return min((moment for moment in moments if moment is not None), default=None)
