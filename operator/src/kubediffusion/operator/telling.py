"""What people are told: Events on what they would ask about, model statuses, and how many explanations at a time."""

from __future__ import annotations

import datetime as dt
import time

from kubediffusion.operator import metrics
from kubediffusion.operator.actions import Bind, Explain, JobAction, ReportModel, Requeue
from kubediffusion.operator.events import Event, EventRecorder
from kubediffusion.operator.model_status import model_status
from kubediffusion.operator.views import ModelView
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.conditions import ConditionStatus, JobReason, ModelCondition, WaitingReason, find
from kubediffusion.resources.diffusion_model import DiffusionModel, DiffusionModelStatus
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.transitions import TERMINAL

REPORT_PERIOD = dt.timedelta(seconds=1)
PARAMETERS_ADJUSTED = "ParametersAdjusted"
"""Reason of an Event that no condition carries: the job ran with other parameters than it asked for."""


class Teller:
    """Notes an Event, or a measurement, for what has come to pass.

    Args:
        events: Where Events go.
    """

    def __init__(self, events: EventRecorder) -> None:
        self._events = events

    def job_written(self, action: JobAction, job: GenerationJob) -> None:
        """Tell of an action on a job, which is so now."""
        match action:
            case Bind():
                if action.job.status.attempt == 0 and action.job.metadata.creation_timestamp is not None:
                    waited = dt.datetime.now(dt.UTC) - action.job.metadata.creation_timestamp
                    metrics.BINDING_SECONDS.observe(max(waited.total_seconds(), 0))
            case Requeue():
                self._events.record(
                    Event(job, "Warning" if action.counted else "Normal", action.reason, action.message)
                )
            case Explain():
                self._events.record(Event(job, "Normal", action.reason, action.message))
            case _:
                pass

    def job_ended(self, job: GenerationJob, before: GenerationJob | None) -> None:
        """Tell of a job's end, unless it had ended before."""
        if before is None or before.status.phase in TERMINAL:
            return
        if job.status.phase is Phase.FAILED and job.status.error is not None:
            self._events.record(Event(job, "Warning", job.status.error.code, job.status.error.message))
        elif job.status.phase is Phase.CANCELLED and job.status.error is not None:
            self._events.record(Event(job, "Normal", JobReason.CANCELLED, job.status.error.message))
        for warning in job.status.warnings:
            self._events.record(Event(job, "Warning", PARAMETERS_ADJUSTED, warning))

    def model_reported(self, action: ReportModel) -> None:
        """Tell of a model that can be used now, or no longer."""
        before = find(action.model.status.conditions, ModelCondition.AVAILABLE)
        after = find(action.status.conditions, ModelCondition.AVAILABLE)
        if after is None or (before is not None and before.reason == after.reason):
            return
        bad = after.status == ConditionStatus.FALSE
        self._events.record(Event(action.model, "Warning" if bad else "Normal", after.reason, after.message))

    def worker_refused(self, model: DiffusionModel, message: str) -> None:
        """Tell why the API server takes no worker of a model."""
        self._events.record(Event(model, "Warning", WaitingReason.WORKER_REFUSED, message))


class ModelReports:
    """Decides when a model's status is written: whether it can be used at once, numbers once a second."""

    def __init__(self) -> None:
        self._reported: dict[str, dt.datetime] = {}

    def next_report(self, view: ModelView, revision: str | None, now: dt.datetime) -> ReportModel | dt.datetime | None:
        """Return the report to write now, or when to look again; None when the status says all.

        Args:
            view: What is observed of the model.
            revision: What its workers last reported to have loaded.
            now: The time.
        """
        model = view.model
        metrics.QUEUED.labels(model.metadata.namespace, model.name).set(view.waiting_count)
        for state in WorkerState:
            count = sum(worker.state is state for worker in view.workers)
            metrics.WORKERS.labels(model.metadata.namespace, model.name, state).set(count)
        status = model_status(view, revision, now)
        if status == model.status:
            return None
        due = self._reported.get(model.uid, now - REPORT_PERIOD) + REPORT_PERIOD
        if now < due and _availability(status) == _availability(model.status):
            return due
        self._reported[model.uid] = now
        return ReportModel(model, status)

    def forget(self, model: DiffusionModel) -> None:
        """Drop what is kept of a model that is gone."""
        metrics.forget_model(model.metadata.namespace, model.name)
        self._reported.pop(model.uid, None)


def _availability(status: DiffusionModelStatus) -> object:
    """Return what is written at once when it changes. Words are not: while a worker starts they tell its progress."""
    condition = find(status.conditions, ModelCondition.AVAILABLE)
    return condition and (condition.status, condition.reason, condition.observed_generation)


class TokenBucket:
    """How many jobs may be told why they wait: a token bucket of one second's worth, and of one at least.

    Args:
        rate: Explanations a second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._capacity = max(rate, 1.0)
        self._left = self._capacity
        self._refilled = time.monotonic()

    @property
    def left(self) -> int:
        """How many may be written now."""
        now = time.monotonic()
        self._left = min(self._capacity, self._left + self._rate * (now - self._refilled))
        self._refilled = now
        return int(self._left)

    def spend(self) -> None:
        """Count one."""
        self._left -= 1
