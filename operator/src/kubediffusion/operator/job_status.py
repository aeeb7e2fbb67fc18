"""What a job's status says: where it stands after each action, why it waits, and every sentence of these. Pure.

Finishing and binding are told by :func:`next_status`. Waiting is told at a bounded rate (docs/adr/0006): each job that
has waited long enough and does not say so yet, from the head of the queue, so many a pass.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import Iterable, Iterator

from kubediffusion.operator.actions import Bind, Explain, Finish, Requeue
from kubediffusion.operator.cut_off import workers_cut_off
from kubediffusion.operator.scaling import LoadFailure, back_off_until, doubtful_failure
from kubediffusion.operator.snapshots import Decision, ModelSnapshot, NamespaceSnapshot
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.conditions import (
    Condition,
    ConditionStatus,
    JobConditionType,
    JobReason,
    WaitingReason,
    find_condition,
    with_condition,
)
from kubediffusion.resources.generation_job import (
    GenerationJob,
    GenerationJobSpec,
    GenerationJobStatus,
    JobError,
    Parameters,
    Phase,
)
from kubediffusion.resources.parameters import resolve_parameters
from kubediffusion.resources.transitions import Writer, allowed

CANCELLED = "cancelled by spec.cancel"
DELETED = "the GenerationJob was deleted"
SUSPENDED = "spec.suspend is true"

_SAID_ANEW = {WaitingReason.WORKER_CANNOT_START, WaitingReason.WORKER_REFUSED}

_VOLATILE = re.compile(r"""(["'`]).*?\1|\d+""")
"""Names of Pods, which are generated for each attempt, stand in quotes; the rest is numbers, times among them."""

_IMAGE_PULL = re.compile(r"\b(ErrImagePull|ImagePullBackOff)\b")
"""The kubelet gives these by turns for one image that cannot be pulled."""


def next_status(
    action: Bind | Requeue | Finish | Explain, now: dt.datetime, seed: int, first_seen: dt.datetime | None = None
) -> GenerationJobStatus:
    """Return the status that an action leads to.

    Args:
        action: What was decided.
        now: The time to write.
        seed: Seed for a job that has none yet.
        first_seen: When the job was first seen, where that is known more exactly than from its creation timestamp.

    Raises:
        ValueError: The table of transitions forbids it; a defect of the scheduler, found before the API server does.
    """
    old = action.job.status
    queued_at = old.queued_at or first_seen or action.job.metadata.creation_timestamp or now
    new = _next(action, now, seed).model_copy(update={"queued_at": queued_at})
    if not isinstance(action, Explain) and not allowed(Writer.OPERATOR, old.phase, new.phase):
        raise ValueError(f"{action.job.name}: the operator may not take a job from {old.phase} to {new.phase}")
    return new


def error_status(job: GenerationJob, message: str, now: dt.datetime) -> GenerationJobStatus:
    """Return the status of a job at which the operator failed: a waiting one says so, a bound one is left as it is.

    Args:
        job: The job.
        message: What a person reads.
        now: The time to write.
    """
    if job.status.phase is not Phase.PENDING:
        return job.status
    conditions = with_condition(
        job.status.conditions,
        JobConditionType.SCHEDULED,
        ConditionStatus.FALSE,
        WaitingReason.INTERNAL_ERROR,
        message,
        now,
    )
    return job.status.model_copy(update={"conditions": conditions})


def _next(action: Bind | Requeue | Finish | Explain, now: dt.datetime, seed: int) -> GenerationJobStatus:
    match action:
        case Bind():
            return _bound(action, now, seed)
        case Requeue():
            return _requeued(action, now)
        case Finish():
            return _finished(action, now)
        case Explain():
            return _explained(action, now)


def _bound(action: Bind, now: dt.datetime, seed: int) -> GenerationJobStatus:
    job, old = action.job, action.job.status
    conditions = _lasting(old.conditions)
    if conditions:
        # A job that was bound at once never had a Scheduled condition, and needs none.
        conditions = with_condition(
            conditions, JobConditionType.SCHEDULED, ConditionStatus.TRUE, JobReason.BOUND, f"bound to {action.pod}", now
        )
    return old.model_copy(
        update={
            "phase": Phase.SCHEDULED,
            "conditions": conditions,
            "worker": action.pod,
            "attempt": old.attempt + 1,
            "retries": old.retries + int(action.costs_retry),
            "suspects": action.suspect_group_size or None,
            "progress": None,
            "start_time": None,
            "parameters": _parameters(action, seed),
            "observed_generation": job.metadata.generation,
        }
    )


def _lasting(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Leave out what an attempt said of its images: the next one has none yet."""
    return tuple(condition for condition in conditions if condition.type != JobConditionType.UPLOADED)


def _parameters(action: Bind, seed: int) -> Parameters:
    """Resolve the recipe once, before the first attempt; a retry runs the same one."""
    earlier = action.job.status.parameters
    if earlier is not None and earlier.model == action.model.name:
        return earlier
    seed = earlier.seed if earlier is not None else seed
    return resolve_parameters(action.job.spec, action.model, seed, action.adapters)


def _requeued(action: Requeue, now: dt.datetime) -> GenerationJobStatus:
    old = action.job.status
    return old.model_copy(
        update={
            "phase": Phase.PENDING,
            "conditions": with_condition(
                _lasting(old.conditions),
                JobConditionType.SCHEDULED,
                ConditionStatus.FALSE,
                action.reason,
                action.message,
                now,
            ),
            "worker": None,
            "retries": old.retries + int(action.costs_retry),
            "suspects": action.suspect_group_size or None,
            "progress": None,
            "start_time": None,
        }
    )


def _finished(action: Finish, now: dt.datetime) -> GenerationJobStatus:
    old = action.job.status
    reason = action.code or JobReason.CANCELLED
    status = old.model_copy(
        update={
            "phase": action.phase,
            "conditions": with_condition(
                old.conditions, JobConditionType.FAILED, ConditionStatus.TRUE, reason, action.message, now
            ),
            "retries": old.retries + int(action.costs_retry),
            "error": JobError(code=reason, message=action.message),
            "completion_time": now,
        }
    )
    return status.without_generation()


def _explained(action: Explain, now: dt.datetime) -> GenerationJobStatus:
    old = action.job.status
    return old.model_copy(
        update={
            "conditions": with_condition(
                old.conditions, JobConditionType.SCHEDULED, ConditionStatus.FALSE, action.reason, action.message, now
            ),
        }
    )


def explain_waiting_jobs(
    snapshot: ModelSnapshot, rest: Iterator[GenerationJob], now: dt.datetime, after: dt.timedelta, explanations: int
) -> Decision:
    """Decide which jobs of a model's queue are told why they wait.

    Args:
        snapshot: What is observed of the model.
        rest: The jobs that go on waiting, from the head of the queue.
        now: The time.
        after: How long a job waits before it is told.
        explanations: How many may be told in this pass.
    """
    if explanations <= 0:
        return Decision((), now + dt.timedelta(seconds=1) if snapshot.waiting_count else None)
    reason, message = waiting_reason(snapshot, now)
    actions: list[Explain] = []
    # The head of the queue is what people ask about; looking further costs every pass.
    for job in itertools.islice(rest, 100):
        due = (job.metadata.creation_timestamp or now) + after
        if now < due:
            return Decision(tuple(actions), due)
        if _says(job, reason, message):
            continue
        if len(actions) >= explanations:
            return Decision(tuple(actions), now + dt.timedelta(seconds=1))
        actions.append(Explain(job, reason, message))
    return Decision(tuple(actions))


def _says(job: GenerationJob, reason: WaitingReason, message: str) -> bool:
    """Return whether a job says already why it waits.

    What people have to mend is said anew when another thing is in the way: a quota was raised, and now a Secret is
    missing. What changes by itself (how many workers are ready) is said once.
    """
    said = find_condition(job.status.conditions, JobConditionType.SCHEDULED)
    if said is None or said.status != ConditionStatus.FALSE or said.reason != reason:
        return False
    return reason not in _SAID_ANEW or _obstacle(said.message) == _obstacle(message)


def _obstacle(message: str) -> str:
    """Return what stands in the way, without what every attempt changes in the words for it."""
    if pull := _IMAGE_PULL.search(message):
        return message[: pull.start()]
    return _VOLATILE.sub("", message)


def waiting_reason(snapshot: ModelSnapshot, now: dt.datetime) -> tuple[WaitingReason, str]:
    """Return why a job of this model waits, for programs and for people."""
    settings, name = snapshot.model.spec.workers, snapshot.model.name
    ready = snapshot.current(WorkerState.READY)
    starting = snapshot.current(WorkerState.STARTING)
    back_off = _back_off(snapshot, now)
    stuck = [w.unscheduled for w in starting if w.unscheduled]
    if ready:
        message = f"ready workers of model {name}: {len(ready)}, all at capacity"
        message += f"; maxReplicas is {settings.max_replicas}"
        message += f"; {placed} starting" if (placed := len(starting) - len(stuck)) else ""
        message += f"; {len(stuck)} without a node: {stuck[0]}" if stuck else ""
        if len(snapshot.replicas) < settings.max_replicas:
            message += f"; no more can be created: {snapshot.refusal}" if snapshot.refusal else ""
            message += f"; {back_off}" if back_off else ""
        return WaitingReason.WORKERS_BUSY, message
    if stuck:
        return WaitingReason.WORKER_UNSCHEDULABLE, f"no node takes a worker of model {name}: {stuck[0]}"
    if snapshot.refusal and not snapshot.loading:
        return WaitingReason.WORKER_REFUSED, f"no worker of model {name} can be created: {snapshot.refusal}"
    if blocked := [w.blocked for w in starting if w.blocked]:
        return WaitingReason.WORKER_CANNOT_START, f"a worker of model {name} cannot start: {blocked[0]}"
    if starting:
        # Not how far it is: this is written once, and would soon be wrong.
        message = f"a worker is loading model {name}; the model's status.workers.starts says how far it is"
        return WaitingReason.WORKER_STARTING, message
    if cut_off := snapshot.current(WorkerState.CUT_OFF):
        return WaitingReason.WORKER_CUT_OFF, workers_cut_off(cut_off)
    if snapshot.current(WorkerState.QUEUED):
        return WaitingReason.WORKER_QUEUED, f"Kueue has not admitted a worker to queue {settings.queue_name} yet"
    return _why_none_starts(snapshot, back_off)


def _why_none_starts(snapshot: ModelSnapshot, back_off: str) -> tuple[WaitingReason, str]:
    """Return why a job waits whose model has no worker yet, nor anything known in the way of one."""
    most = snapshot.model.spec.workers.max_replicas
    if len(snapshot.replicas) >= most:
        message = f"a worker of model {snapshot.model.name} is going, and the next one gets its place once it has ended"
        return WaitingReason.WORKER_STARTING, f"{message}; maxReplicas is {most}"
    if back_off:
        return WaitingReason.WORKER_BACK_OFF, back_off
    return WaitingReason.WORKER_STARTING, f"a worker of model {snapshot.model.name} is being created"


def second_opinion(model: str, doubt: LoadFailure) -> str:
    """Return the sentence that says why one worker could not load a model, and when another one tries."""
    when = f" at {doubt.until:%H:%M:%S} UTC" if doubt.until is not None else ""
    return f"one worker could not load model {model}; another one tries{when}, before any job fails: {doubt.reason}"


def _back_off(snapshot: ModelSnapshot, now: dt.datetime) -> str:
    """Return the sentence that says until when the next worker waits; empty where it need not."""
    if (doubt := doubtful_failure(snapshot)) is not None:
        return second_opinion(snapshot.model.name, doubt)
    crashes = snapshot.crashes
    allowed = back_off_until(crashes)
    if allowed is None or now >= allowed:
        return ""
    message = f"{len(crashes)} workers of model {snapshot.model.name} crashed in a row; the next one starts at "
    return f"{message}{allowed:%H:%M:%S} UTC. Last: {crashes[-1].crash}"


def explain_suspended_jobs(snapshot: NamespaceSnapshot, now: dt.datetime, explanations: int) -> Decision:
    """Decide which suspended jobs are told that they are.

    Args:
        snapshot: What is observed of the namespace.
        now: The time.
        explanations: How many jobs may be told why they wait; the next pass goes on.
    """
    explained = snapshot.suspended_jobs[: max(explanations, 0)]
    actions = (Explain(job, WaitingReason.SUSPENDED, SUSPENDED) for job in explained)
    rest = len(snapshot.suspended_jobs) - len(explained)
    return Decision(tuple(actions), now + dt.timedelta(seconds=1) if rest else None)


def deadline_exceeded(seconds: int | None) -> str:
    """Return why a job failed that did not finish within ``activeDeadlineSeconds``."""
    return f"not finished {seconds} s after its creation (spec.activeDeadlineSeconds)"


def backoff_limit_exceeded(how: str, attempt: int, limit: int) -> str:
    """Return why a job failed whose worker died once too often.

    Args:
        how: The sentence on the worker's end: see :func:`worker_ended`.
        attempt: How many times a worker died while it ran the job alone.
        limit: The job's ``backoffLimit``.
    """
    return f"{how} while it ran the job alone, for the {_ordinal(attempt)} time; spec.backoffLimit is {limit}"


def limit_exceeded(field: str, problem: str) -> str:
    """Return why a job failed that its model's limits refuse; ``field`` is one of the spec, by its name in Python."""
    return f"spec.{GenerationJobSpec.model_fields[field].alias}: {problem}"


def model_not_available(reason: str) -> str:
    """Return why a job failed whose model cannot be loaded."""
    return f"Model not available: {reason}"


def model_not_found(job: GenerationJob, namespace: str, models: Iterable[str]) -> str:
    """Return why a job failed whose model does not exist, with the names of those that do."""
    there = ", ".join(sorted(models)) or "none"
    return model_not_available(f"no {_wanted_model(job)} in namespace {namespace} (there: {there})")


def model_missing(job: GenerationJob, namespace: str) -> str:
    """Return why a job waits whose model does not exist yet."""
    return f"no {_wanted_model(job)} exists in {namespace} yet"


def worker_ended(pod: str, crash: str | None) -> str:
    """Return why a job is taken from a worker; ``crash`` says how that ended, None where it is gone."""
    return f"worker {pod} ended ({crash})" if crash is not None else f"worker {pod} is gone"


def worker_ended_with_several(how: str, together: int, most: int) -> str:
    """Return why a job is taken from a worker that died with several.

    Args:
        how: The sentence on its end: see :func:`worker_ended`.
        together: How many jobs it had.
        most: How many of them run together next.
    """
    return f"{how}; any of its {together} jobs may be why, so they run again with at most {most} together"


def worker_terminating(pod: str) -> str:
    """Return why a job is taken from a worker that was told to end."""
    return f"worker {pod} is going"


def node_silent(pod: str) -> str:
    """Return why a job is taken from a worker that was told to end, and whose node says nothing of that."""
    return f"worker {pod} was told to go, and its node is silent"


def status_refused(reason: str) -> str:
    """Return the message on a job whose status the API server does not take."""
    return f"the API server refuses the job's status: {reason}"


def operator_failed(error: Exception) -> str:
    """Return the message on a job at which the operator failed, by the error's class: its text may quote a prompt."""
    return f"the operator failed at this job ({type(error).__name__}) and tries again; see its log"


def _wanted_model(job: GenerationJob) -> str:
    return f"DiffusionModel {job.spec.model!r}" if job.spec.model else "default DiffusionModel"


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
