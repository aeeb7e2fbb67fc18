"""Which job runs where, and how many workers there are: decided from a view of one model and a time. Pure.

A pass over a model is six steps: release the jobs of workers that are gone, order them with those that wait, bind
from the head while workers have room, put the rest back, scale the workers to the backlog, say why the others wait.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kubediffusion.operator.actions import (
    Action,
    Bind,
    CreateWorker,
    DeleteWorker,
    Explain,
    Finish,
    HoldImages,
    Requeue,
)
from kubediffusion.operator.workers import Worker, WorkerState
from kubediffusion.resources import meta, recipe
from kubediffusion.resources.backoff import pause_after
from kubediffusion.resources.conditions import ConditionStatus, JobCondition, WaitingReason, find
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.errors import ErrorCode
from kubediffusion.resources.generation_job import (
    DEFAULT_BACKOFF_LIMIT,
    DeletionPolicy,
    GenerationJob,
    GenerationJobSpec,
    Phase,
)
from kubediffusion.resources.order import QueueKey, queue_key

FIRST_BACK_OFF = 10.0
"""Seconds until the next worker after two crashes in a row; after one it starts at once."""
LONGEST_BACK_OFF = 300.0
"""Seconds until the next worker at most."""
FIRST_RELOAD = 300.0
"""Seconds until a model that could not be loaded may be tried again: not all of the cause is in its spec."""
LONGEST_RELOAD = 3600.0
"""Seconds until then at most."""
KEPT_FAILURES = 7
"""Failed workers kept as the record of a model's crashes: their number sets the pause before the next."""

MOST_FAILURES_A_PASS = 200
"""Jobs failed in one pass when their model cannot be loaded, so that a long queue does not hold up the others."""

LIVE = frozenset({WorkerState.QUEUED, WorkerState.STARTING, WorkerState.READY})

_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)


def order_key(job: GenerationJob) -> QueueKey[dt.datetime]:
    """Give what the queue is sorted by."""
    return queue_key(job.spec.priority, job.metadata.creation_timestamp or _NEVER, job.name)


@dataclass(frozen=True)
class Knobs:
    """Settings of the scheduler.

    Attributes:
        batches_ahead: Batches bound to a worker at most.
        explain_after: How long a job waits before it says why.
        model_grace: How long a job waits for a model that does not exist.
    """

    batches_ahead: int = 2
    explain_after: dt.timedelta = dt.timedelta(seconds=1)
    model_grace: dt.timedelta = dt.timedelta(seconds=30)


@dataclass(frozen=True)
class ModelView:
    """Everything that a decision about one model rests on.

    Attributes:
        model: The model.
        template_hash: Hash of the worker template that its spec gives now.
        waiting: Jobs that wait for it, in order of :func:`order_key`. Read lazily: a pass looks at as many as it binds.
        waiting_count: How many those are.
        waiting_slots: The places of a batch that they take.
        workers: All its workers, of any template.
        bound: Jobs that workers have, by the name of the Pod.
        refusal: Why the API server does not take a new worker's Job; empty while it does.
    """

    model: DiffusionModel
    template_hash: str
    waiting: Iterable[GenerationJob] = ()
    waiting_count: int = 0
    waiting_slots: int = 0
    workers: tuple[Worker, ...] = ()
    bound: Mapping[str, tuple[GenerationJob, ...]] = field(default_factory=dict)
    refusal: str = ""

    @property
    def batch(self) -> int:
        """Images that a worker runs together."""
        return self.model.spec.workers.max_batch_size

    def current(self, *states: WorkerState) -> list[Worker]:
        """Give the workers of today's template that are in one of the states."""
        return [w for w in self.workers if w.template_hash == self.template_hash and w.state in states]

    @property
    def crashes(self) -> list[Worker]:
        """The failed workers of today's template that say nothing of the model, the latest last."""
        return [w for w in self.failures if w.bad_model is None]

    @property
    def failures(self) -> list[Worker]:
        """The failed workers of today's template, the latest last."""
        failed = self.current(WorkerState.FAILED)
        # What its Job does not say yet has just happened.
        return sorted(failed, key=lambda w: (w.failed_at or _NEVER, w.name))

    def slots(self, job: GenerationJob) -> int:
        """Give the places of a batch that a job takes: one that has more images runs in several, of one worker."""
        return min(job.spec.num_images or 1, self.batch)

    def load(self, worker: Worker) -> int:
        """Give the places that a worker's jobs take."""
        return sum(map(self.slots, self.jobs_of(worker)))

    def jobs_of(self, worker: Worker) -> tuple[GenerationJob, ...]:
        """Give the jobs that a worker has."""
        return self.bound.get(worker.pod.metadata.name, ()) if worker.pod is not None else ()


@dataclass(frozen=True)
class Plan:
    """What to do now, and when to look again if nothing happens before."""

    actions: tuple[Action, ...]
    next_look: dt.datetime | None = None


@dataclass(frozen=True)
class Released:
    """A job whose worker is gone.

    Attributes:
        job: The job.
        counted: Whether the attempt counts against ``backoffLimit``.
        message: What became of the worker.
    """

    job: GenerationJob
    counted: bool
    message: str


@dataclass(frozen=True)
class LoadFailure:
    """A model that cannot be loaded.

    Attributes:
        reason: What the worker said.
        until: When it may be tried again; None where that is not known yet.
    """

    reason: str
    until: dt.datetime | None


def judge(job: GenerationJob, now: dt.datetime) -> Finish | None:
    """Tell whether an unfinished job must end whatever its worker does: cancelled, deleted or too late."""
    if job.spec.cancel:
        return Finish(job, Phase.CANCELLED, None, "cancelled by spec.cancel")
    if job.metadata.deletion_timestamp is not None:
        return Finish(job, Phase.CANCELLED, None, "the GenerationJob was deleted")
    due = deadline(job)
    if due is not None and now >= due:
        message = f"not finished {job.spec.active_deadline_seconds} s after its creation (spec.activeDeadlineSeconds)"
        return Finish(job, Phase.FAILED, ErrorCode.DEADLINE_EXCEEDED, message)
    return None


def deadline(job: GenerationJob) -> dt.datetime | None:
    """Give the moment at which a job fails for its ``activeDeadlineSeconds``."""
    if job.spec.active_deadline_seconds is None or job.metadata.creation_timestamp is None:
        return None
    return job.metadata.creation_timestamp + dt.timedelta(seconds=job.spec.active_deadline_seconds)


def plan_model(view: ModelView, now: dt.datetime, knobs: Knobs, explanations: int = 0) -> Plan:
    """Decide everything about one model.

    Args:
        view: What is observed.
        now: The time.
        knobs: Settings.
        explanations: How many jobs may be told why they wait.
    """
    spent, released = _split_by_backoff(release(view))
    again = {item.job.uid for item in released}
    queue = heapq.merge(
        sorted(released, key=_released_key),
        (Released(job, counted=False, message="") for job in view.waiting),
        key=_released_key,
    )
    failing = fail_for_model(load_failure(view, now), queue, MOST_FAILURES_A_PASS)
    binding = bind(view, queue, knobs)
    handled = {action.job.uid: action.job for action in (*failing, *binding)}
    unbound = [item for item in released if item.job.uid not in handled]
    backlog = view.waiting_slots + sum(view.slots(item.job) for item in released)
    backlog -= sum(map(view.slots, handled.values()))
    scaling = scale(view, now, backlog, {action.pod for action in binding if isinstance(action, Bind)})
    rest = (item.job for item in queue if item.job.uid not in again)
    explaining = explain(view, rest, now, knobs, explanations)
    actions = (*spent, *failing, *binding, *map(_requeue, unbound), *scaling.actions, *explaining.actions)
    looks = [plan.next_look for plan in (scaling, explaining) if plan.next_look is not None]
    return Plan(actions, min(looks, default=None))


def _released_key(item: Released) -> QueueKey[dt.datetime]:
    return order_key(item.job)


def release(view: ModelView) -> Iterator[Released]:
    """Give the jobs whose worker is gone, and those that a going worker has not started.

    Only a job that was running when its worker died spends its ``backoffLimit``: one that was sent away (drained,
    preempted, deleted) and not done within its grace period did not die of its jobs, nor did one whose node is lost. A
    batch that ends within a second is never reported as Running, so where a worker crashed and none of its jobs was,
    all of them may have done it.
    """
    workers = {w.pod.metadata.name: w for w in view.workers if w.pod is not None}
    for name, jobs in view.bound.items():
        worker = workers.get(name)
        pod = worker.pod if worker is not None else None
        if worker is None or pod is None or pod.finished:
            yield from _left_behind(name, worker, jobs)
        elif worker.lost:
            for job in jobs:
                yield Released(job, counted=False, message=f"worker {name} was told to go, and its node is silent")
        elif worker.state is WorkerState.GOING or pod.going:
            for job in jobs:
                if job.status.phase == Phase.SCHEDULED:
                    yield Released(job, counted=False, message=f"worker {name} is going")
        else:
            for job in jobs:
                if job.spec.suspend and job.status.phase == Phase.SCHEDULED:
                    yield Released(job, counted=False, message="spec.suspend is true")


def _left_behind(name: str, worker: Worker | None, jobs: tuple[GenerationJob, ...]) -> Iterator[Released]:
    """Give the jobs of a worker that has ended, of which nothing may be left to see."""
    died = worker is None or not worker.sent_away
    crashed = died and worker is not None and worker.state is WorkerState.FAILED
    some_ran = any(job.status.phase == Phase.RUNNING for job in jobs)
    how = f"worker {name} ended ({worker.crash})" if worker is not None else f"worker {name} is gone"
    for job in jobs:
        running = job.status.phase == Phase.RUNNING
        yield Released(job, counted=died and (running or (crashed and not some_ran)), message=how)


def _split_by_backoff(released: Iterable[Released]) -> tuple[list[Finish], list[Released]]:
    spent, left = [], []
    for item in released:
        limit = DEFAULT_BACKOFF_LIMIT if item.job.spec.backoff_limit is None else item.job.spec.backoff_limit
        if item.counted and item.job.status.retries >= limit:
            message = f"{item.message} while it ran the job, for the {_ordinal(item.job.status.retries + 1)} time; "
            message += f"spec.backoffLimit is {limit}"
            spent.append(Finish(item.job, Phase.FAILED, ErrorCode.BACKOFF_LIMIT_EXCEEDED, message, counted=True))
        else:
            left.append(item)
    return spent, left


def bind(view: ModelView, queue: Iterator[Released], knobs: Knobs) -> list[Bind | Finish | HoldImages]:
    """Bind jobs from the head of the queue to the least loaded worker, while one has room.

    A job is never passed over for a later one: the first that finds no room ends the binding, and the queue is left
    at what goes on waiting. A job that the model's limits refuse fails here, at the latest.
    """
    actions: list[Bind | Finish | HoldImages] = []
    room = {
        w.pod.metadata.name: knobs.batches_ahead * view.batch - view.load(w)
        for w in view.current(WorkerState.READY)
        if w.pod is not None
    }
    while any(free > 0 for free in room.values()):
        item = next(queue, None)
        if item is None:
            break
        job = item.job
        if job.spec.suspend:
            continue
        if problem := next(recipe.check_limits(job.spec, view.model), None):
            message = f"spec.{GenerationJobSpec.model_fields[problem.field].alias}: {problem.message}"
            actions.append(Finish(job, Phase.FAILED, ErrorCode.INVALID_SPEC, message, counted=item.counted))
        elif job.spec.deletion_policy == DeletionPolicy.DELETE and meta.IMAGES_FINALIZER not in job.metadata.finalizers:
            # The finalizer comes first; that write brings the job back here.
            actions.append(HoldImages(job))
        else:
            pod = max(room, key=lambda name: (room[name], name))
            room[pod] -= view.slots(job)
            actions.append(Bind(job, view.model, pod, counted=item.counted))
    return actions


def fail_for_model(failure: LoadFailure | None, queue: Iterator[Released], most: int) -> list[Finish]:
    """Fail the jobs that wait for a model which cannot be loaded; none while it can.

    Args:
        failure: Why the model cannot be loaded.
        queue: Jobs that wait.
        most: How many may fail in one pass; the next pass goes on.
    """
    if failure is None:
        return []
    message = f"Model not available: {failure.reason}"
    return [
        Finish(item.job, Phase.FAILED, ErrorCode.MODEL_NOT_AVAILABLE, message, counted=item.counted)
        for item in itertools.islice(queue, most)
    ]


def load_failure(view: ModelView, now: dt.datetime) -> LoadFailure | None:
    """Give why the model cannot be loaded; None when it can be, nobody knows yet, or it is time to try again.

    A corrected spec makes another template, of which nothing is known. What else it was (a Secret, a volume, a
    bucket) may be mended without the operator seeing it, so after a pause the failure counts no more. The failed
    workers are the record of the tries, as :func:`back_off_until` has it.
    """
    failed = [w for w in view.failures if w.bad_model is not None]
    if not failed or view.current(WorkerState.READY):
        return None
    reason, at = failed[-1].bad_model or "", failed[-1].failed_at
    if at is None:
        # Its Job will say in a moment.
        return LoadFailure(reason, None)
    until = at + dt.timedelta(seconds=pause_after(len(failed), FIRST_RELOAD, LONGEST_RELOAD))
    return LoadFailure(reason, until) if now < until else None


def scale(view: ModelView, now: dt.datetime, backlog: int, newly_bound: frozenset[str] | set[str]) -> Plan:
    """Create workers up to what the backlog asks for, and delete those that are outdated, failed or idle for long.

    Args:
        view: What is observed.
        now: The time.
        backlog: Places of a batch that the jobs take which wait and found no room in this pass.
        newly_bound: Pods that get a job in this pass.
    """
    settings = view.model.spec.workers
    actions: list[Action] = []
    looks: list[dt.datetime] = []
    live = view.current(*LIVE)
    # One that is going holds its GPU until its Pod has ended, or its node is lost.
    held = [w for w in view.workers if w.state in LIVE or (w.pod is not None and not w.pod.finished and not w.lost)]
    looks += [w.lost_at for w in view.workers if w.lost_at is not None and not w.lost]
    load = sum(view.load(w) for w in live)
    wanted = min(max(math.ceil((backlog + load) / view.batch), settings.min_replicas), settings.max_replicas)

    actions += _forget_failures(view, view.failures)
    missing = min(wanted - len(live), settings.max_replicas - len(held))
    failure = load_failure(view, now)
    if failure is not None:
        looks += [failure.until] if failure.until is not None else []
    elif missing > 0:
        allowed = back_off_until(view.crashes)
        if allowed is not None and now < allowed:
            looks.append(allowed)
        else:
            taken = {w.name for w in view.workers}
            names = (
                ordinal
                for ordinal in itertools.count()
                if meta.worker_job_name(view.model.name, view.template_hash, ordinal) not in taken
            )
            actions += [
                CreateWorker(view.model, view.template_hash, ordinal) for ordinal in itertools.islice(names, missing)
            ]

    for worker in view.workers:
        ended = worker.job.complete or worker.lost
        if ended and worker.job.metadata.deletion_timestamp is None and not view.jobs_of(worker):
            # It was told to go by somebody else: a drain, or a Pod that was deleted.
            actions.append(_delete(worker, "its node is silent" if worker.lost else "it has ended"))
        outdated = worker.template_hash != view.template_hash and worker.state in LIVE
        if outdated and not view.jobs_of(worker):
            actions.append(_delete(worker, "the model's spec has changed"))
    idle = [
        (w.idle_since, w)
        for w in view.current(WorkerState.READY)
        if w.idle_since is not None
        and w.pod is not None
        and w.pod.metadata.name not in newly_bound
        and not view.jobs_of(w)
    ]
    surplus = len(live) - wanted
    for since, worker in sorted(idle, key=lambda pair: pair[0])[: max(surplus, 0)]:
        due = since + dt.timedelta(seconds=settings.idle_seconds)
        if now >= due:
            actions.append(_delete(worker, f"idle for {settings.idle_seconds} s"))
        else:
            looks.append(due)
    return Plan(tuple(actions), min(looks, default=None))


def back_off_until(failures: list[Worker]) -> dt.datetime | None:
    """Give when the next worker may start after so many crashes in a row: at once after one, then after pauses.

    The failed workers themselves are the record, so a restarted operator pauses just as long.
    """
    times = [w.failed_at for w in failures if w.failed_at is not None]
    if len(failures) < 2 or not times:
        return None
    pause = pause_after(len(failures) - 1, FIRST_BACK_OFF, LONGEST_BACK_OFF)
    return max(times) + dt.timedelta(seconds=pause)


def _forget_failures(view: ModelView, failures: list[Worker]) -> list[DeleteWorker]:
    actions = []
    gone = [w for w in view.workers if w.state is WorkerState.FAILED and w.template_hash != view.template_hash]
    actions += [_delete(w, "the model's spec has changed") for w in gone if not view.jobs_of(w)]
    if view.current(WorkerState.READY):
        actions += [_delete(w, "another worker is ready") for w in failures if not view.jobs_of(w)]
    else:
        oldest = sorted(failures, key=lambda w: (w.job.metadata.creation_timestamp or _NEVER, w.name))
        actions += [_delete(w, "enough later ones have failed") for w in oldest[:-KEPT_FAILURES]]
    return actions


def _delete(worker: Worker, reason: str) -> DeleteWorker:
    metadata = worker.job.metadata
    return DeleteWorker(metadata.namespace, metadata.name, metadata.uid, reason)


def explain(view: ModelView, rest: Iterator[GenerationJob], now: dt.datetime, knobs: Knobs, explanations: int) -> Plan:
    """Say why jobs wait: each that has waited long enough and does not say so yet, from the head, so many a pass."""
    if explanations <= 0:
        return Plan((), now + dt.timedelta(seconds=1) if view.waiting_count else None)
    reason, message = waiting_reason(view, now)
    actions: list[Explain] = []
    # The head of the queue is what people ask about; looking further costs every pass.
    for job in itertools.islice(rest, 100):
        due = (job.metadata.creation_timestamp or now) + knobs.explain_after
        if now < due:
            return Plan(tuple(actions), due)
        said = find(job.status.conditions, JobCondition.SCHEDULED)
        if said is not None and said.status == ConditionStatus.FALSE and said.reason == reason:
            continue
        if len(actions) >= explanations:
            return Plan(tuple(actions), now + dt.timedelta(seconds=1))
        actions.append(Explain(job, reason, message))
    return Plan(tuple(actions))


def waiting_reason(view: ModelView, now: dt.datetime) -> tuple[WaitingReason, str]:
    """Give why a job of this model waits, for programs and for people."""
    settings = view.model.spec.workers
    ready = view.current(WorkerState.READY)
    starting = view.current(WorkerState.STARTING)
    failures = view.crashes
    stuck = [w.pod.unschedulable for w in starting if w.pod is not None and w.pod.unschedulable]
    if ready:
        message = f"ready workers of model {view.model.name}: {len(ready)}, all with their fill"
        message += f"; maxReplicas is {settings.max_replicas}"
        message += f"; {placed} starting" if (placed := len(starting) - len(stuck)) else ""
        message += f"; {len(stuck)} without a node: {stuck[0]}" if stuck else ""
        return WaitingReason.WORKERS_BUSY, message
    if stuck:
        return WaitingReason.WORKER_UNSCHEDULABLE, f"no node takes a worker of model {view.model.name}: {stuck[0]}"
    if view.refusal:
        return WaitingReason.WORKER_REFUSED, f"no worker of model {view.model.name} can be created: {view.refusal}"
    if blocked := [w.pod.blocked for w in starting if w.pod is not None and w.pod.blocked]:
        return WaitingReason.WORKER_CANNOT_START, f"a worker of model {view.model.name} cannot start: {blocked[0]}"
    if starting:
        return WaitingReason.WORKER_STARTING, f"a worker is loading model {view.model.name}"
    if view.current(WorkerState.QUEUED):
        return WaitingReason.WORKER_QUEUED, f"Kueue has not admitted a worker to queue {settings.queue_name} yet"
    allowed = back_off_until(failures)
    if failures and allowed is not None and now < allowed:
        message = f"{len(failures)} workers of model {view.model.name} crashed in a row; the next one starts at "
        return WaitingReason.WORKER_BACK_OFF, f"{message}{allowed:%H:%M:%S} UTC. Last: {failures[-1].crash}"
    return WaitingReason.WORKER_STARTING, f"a worker of model {view.model.name} is being created"


def _requeue(item: Released) -> Requeue:
    reason = WaitingReason.SUSPENDED if item.job.spec.suspend else WaitingReason.RETRYING
    return Requeue(item.job, item.counted, reason, item.message)


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
