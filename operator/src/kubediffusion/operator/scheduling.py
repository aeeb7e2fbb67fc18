"""Which job runs where: decided from the snapshot of one model and a time. Pure.

A pass over a model takes these steps: unbind the jobs of workers that are gone, fail those whose ``backoffLimit`` is
spent, order the others with those that wait, fail jobs of a model that cannot be loaded, bind from the head while
workers have room, put the released rest back, scale the workers to the backlog (:mod:`.scaling`), and say why the
others wait (:mod:`.job_status`).
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kubediffusion.operator import job_status
from kubediffusion.operator.actions import Bind, Finish, HoldImages, JobAction, Requeue, SetAside
from kubediffusion.operator.adapter_reports import adapters_at
from kubediffusion.operator.cut_off import worker_cut_off
from kubediffusion.operator.deadline_queue import time_after
from kubediffusion.operator.placement import WorkerCapacity, best_place, most_together
from kubediffusion.operator.scaling import LoadFailure, load_failure, scale
from kubediffusion.operator.snapshots import Decision, ModelSnapshot, SchedulerOptions, order_key
from kubediffusion.operator.workers import ObservedWorker, WorkerState
from kubediffusion.resources import meta
from kubediffusion.resources.conditions import WaitingReason
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import (
    DEFAULT_BACKOFF_LIMIT,
    DeletionPolicy,
    GenerationJob,
    Phase,
)
from kubediffusion.resources.lora_adapter import LoRAAdapter
from kubediffusion.resources.parameters import check_adapters, check_limits
from kubediffusion.resources.queue_order import QueueKey

MOST_FAILURES_A_PASS = 200
"""Jobs failed in one pass when their model cannot be loaded, so that a long queue does not hold up the others."""


@dataclass(frozen=True)
class BindCandidate:
    """A job that may be bound in this pass: one that waits, or one that is taken from its worker.

    Attributes:
        job: The job.
        costs_retry: Whether the attempt counts against ``backoffLimit``.
        message: Why the job is taken from its worker; empty for one that waits.
        jobs_together: How many jobs the worker had, if any of them may have made it die; 0 for none to blame.
    """

    job: GenerationJob
    costs_retry: bool
    message: str
    jobs_together: int = 0

    @property
    def suspect_group_size(self) -> int:
        """How many jobs the worker had that died, where any of them may be why; 0 where this one is not suspected."""
        return self.jobs_together or self.job.status.suspects or 0


def decide_termination(job: GenerationJob, now: dt.datetime) -> Finish | None:
    """Return how an unfinished job ends that is cancelled, deleted or past its deadline; None for any other."""
    if job.spec.cancel:
        return Finish(job, Phase.CANCELLED, None, job_status.CANCELLED)
    if job.metadata.deletion_timestamp is not None:
        return Finish(job, Phase.CANCELLED, None, job_status.DELETED)
    due = deadline(job)
    if due is not None and now >= due:
        message = job_status.deadline_exceeded(job.spec.active_deadline_seconds)
        return Finish(job, Phase.FAILED, ErrorCode.DEADLINE_EXCEEDED, message)
    return None


def deadline(job: GenerationJob) -> dt.datetime | None:
    """Return the moment at which a job fails for its ``activeDeadlineSeconds``."""
    if job.spec.active_deadline_seconds is None or job.metadata.creation_timestamp is None:
        return None
    return time_after(job.metadata.creation_timestamp, job.spec.active_deadline_seconds)


def schedule_model(
    snapshot: ModelSnapshot, now: dt.datetime, options: SchedulerOptions, explanations: int = 0
) -> Decision:
    """Decide on the jobs and workers of one model.

    Args:
        snapshot: What is observed.
        now: The time.
        options: Settings.
        explanations: How many jobs may be told why they wait.
    """
    spent, released = _split_by_backoff(jobs_to_unbind(snapshot))
    again = {item.job.uid for item in released}
    queue: Iterator[BindCandidate] = heapq.merge(
        sorted(released, key=_candidate_key),
        (BindCandidate(job, costs_retry=False, message="") for job in snapshot.waiting),
        key=_candidate_key,
    )
    failing = fail_for_model(load_failure(snapshot, now), queue, MOST_FAILURES_A_PASS)
    binding, queue = bind(snapshot, queue, options)
    handled = {action.job.uid: action.job for action in (*failing, *binding)}
    unbound = [item for item in released if item.job.uid not in handled]
    # A suspended job asks for no worker. None is in the queue, but one may be taken from its worker, or fail here.
    backlog = snapshot.waiting_slots + sum(snapshot.slots(item.job) for item in released if not item.job.spec.suspend)
    backlog -= sum(snapshot.slots(job) for job in handled.values() if not job.spec.suspend)
    taken = again | {action.job.uid for action in spent}
    scaling = scale(snapshot, now, backlog, taken, {action.pod for action in binding if isinstance(action, Bind)})
    rest = (item.job for item in queue if item.job.uid not in again)
    explaining = job_status.explain_waiting_jobs(snapshot, rest, now, options.explain_after, explanations)
    actions = (*spent, *failing, *binding, *map(_requeue, unbound), *scaling.actions, *explaining.actions)
    rechecks = [part.recheck_at for part in (scaling, explaining) if part.recheck_at is not None]
    return Decision(actions, min(rechecks, default=None))


def _candidate_key(item: BindCandidate) -> QueueKey[dt.datetime]:
    return order_key(item.job)


def jobs_to_unbind(snapshot: ModelSnapshot) -> Iterator[BindCandidate]:
    """Yield the jobs to take from their workers.

    Those are all jobs of a worker that is gone, whose node is lost, or that was cut off for too long. Of other workers
    they are jobs that were not reported as Running: all those of a worker that terminates or is cut off, and suspended
    ones.

    Only a job that was its worker's only one spends its ``backoffLimit`` when the worker dies. Of several, any may have
    done it, also one that was not reported as Running: a batch that ends within a second never is. They become
    suspects, and cost nobody anything (docs/adr/0019). A worker that was sent away (drained, preempted, deleted) and
    not done within its grace period did not die of its jobs, nor did one whose node is lost.
    """
    workers = {w.pod.metadata.name: w for w in snapshot.workers if w.pod is not None}
    for name, jobs in snapshot.bound.items():
        worker = workers.get(name)
        pod = worker.pod if worker is not None else None
        if worker is None or pod is None or pod.finished:
            yield from _jobs_of_ended_worker(name, worker, jobs, max(len(jobs), snapshot.jobs_at_end.get(name, 0)))
        else:
            yield from _jobs_of_running_worker(name, worker, jobs)


def _jobs_of_running_worker(
    name: str, worker: ObservedWorker, jobs: tuple[GenerationJob, ...]
) -> Iterator[BindCandidate]:
    """Yield the jobs to take from a worker that has not ended: all of one that is lost, else what it has not begun.

    One that is cut off may not know of that. What it has begun it computes on, as it may be heard again.
    """
    if worker.lost:
        silent = job_status.node_silent(name) if worker.node_lost else worker_cut_off(name)
        yield from (BindCandidate(job, costs_retry=False, message=silent) for job in jobs)
        return
    reason = ""
    if worker.state is WorkerState.CUT_OFF:
        reason = worker_cut_off(name)
    elif worker.state is WorkerState.GOING or (worker.pod is not None and worker.pod.terminating):
        reason = job_status.worker_terminating(name)
    for job in jobs:
        if job.status.phase == Phase.SCHEDULED and (reason or job.spec.suspend):
            yield BindCandidate(job, costs_retry=False, message=reason or job_status.SUSPENDED)


def _jobs_of_ended_worker(
    name: str, worker: ObservedWorker | None, jobs: tuple[GenerationJob, ...], together: int
) -> Iterator[BindCandidate]:
    """Yield the jobs of a worker that has ended, and decide which of them spends a retry.

    Args:
        name: Name of its Pod.
        worker: The worker; None where it is gone.
        jobs: Those of its jobs that it still has.
        together: How many it had at its end.
    """
    died = worker is None or not worker.told_to_terminate
    crashed = died and worker is not None and worker.state is WorkerState.FAILED
    some_ran = any(job.status.phase == Phase.RUNNING for job in jobs)
    how = job_status.worker_ended(name, worker.crash if worker is not None else None)
    if not (crashed or (died and some_ran)):
        yield from (BindCandidate(job, costs_retry=False, message=how) for job in jobs)
    elif together == 1:
        yield BindCandidate(jobs[0], costs_retry=True, message=how)
    else:
        how = job_status.worker_ended_with_several(how, together, most_together([together]))
        yield from (BindCandidate(job, costs_retry=False, message=how, jobs_together=together) for job in jobs)


def _split_by_backoff(released: Iterable[BindCandidate]) -> tuple[list[Finish], list[BindCandidate]]:
    spent, left = [], []
    for item in released:
        limit = DEFAULT_BACKOFF_LIMIT if item.job.spec.backoff_limit is None else item.job.spec.backoff_limit
        if item.costs_retry and item.job.status.retries >= limit:
            message = job_status.backoff_limit_exceeded(item.message, item.job.status.retries + 1, limit)
            spent.append(Finish(item.job, Phase.FAILED, ErrorCode.BACKOFF_LIMIT_EXCEEDED, message, costs_retry=True))
        else:
            left.append(item)
    return spent, left


def bind(
    snapshot: ModelSnapshot, queue: Iterator[BindCandidate], options: SchedulerOptions
) -> tuple[list[JobAction], Iterator[BindCandidate]]:
    """Bind jobs from the head of the queue to the least loaded worker, while one has room.

    Of equally loaded ones it is one that holds the job's adapters. A job is never passed over for a later one: the
    first that finds no room ends the binding. A job that the model's limits refuse, or whose adapters are none of the
    model's, fails here, at the latest.

    Returns:
        What to do, and the queue of those that go on waiting.
    """
    actions: list[JobAction] = []
    places = [
        WorkerCapacity(
            w.pod.metadata.name,
            options.batches_ahead * snapshot.batch - snapshot.load(w),
            [job.status.suspects or 0 for job in snapshot.jobs_of(w)],
            adapters_at(w, snapshot.jobs_of(w), snapshot.adapters) if snapshot.adapters else set(),
        )
        for w in snapshot.current(WorkerState.READY)
        if w.pod is not None
    ]
    model = snapshot.informed_model
    while any(place.free > 0 for place in places):
        item = next(queue, None)
        if item is None:
            break
        job = item.job
        if job.spec.suspend:
            continue
        try:
            problem = next(check_limits(job.spec, model), None)
            misfit = next(check_adapters(job.spec, model, snapshot.adapters, snapshot.template_hash), None)
        except Exception as error:  # noqa: BLE001 - of any kind: it concerns this job alone
            actions.append(SetAside(job, error))
            continue
        if problem is not None:
            message = job_status.limit_exceeded(problem.field, problem.message)
            actions.append(Finish(job, Phase.FAILED, ErrorCode.INVALID_SPEC, message, costs_retry=item.costs_retry))
        elif misfit is not None:
            message = job_status.limit_exceeded(misfit.field, misfit.message)
            actions.append(Finish(job, Phase.FAILED, ErrorCode.INVALID_ADAPTER, message, costs_retry=item.costs_retry))
        elif job.spec.deletion_policy == DeletionPolicy.DELETE and meta.IMAGES_FINALIZER not in job.metadata.finalizers:
            # The finalizer comes first; that write brings the job back here.
            actions.append(HoldImages(job))
        elif open_to := [place for place in places if place.takes(item.suspect_group_size)]:
            names = [asked.name for asked in job.spec.adapters or ()]
            place = best_place(open_to, names)
            place.take(snapshot.slots(job), item.suspect_group_size, names)
            actions.append(
                Bind(
                    job, model, place.pod, item.costs_retry, item.suspect_group_size, _those_of(job, snapshot.adapters)
                )
            )
        else:
            # It waits for a worker that can be its own, or for those who are suspected with it.
            return actions, itertools.chain((item,), queue)
    return actions, queue


def _those_of(job: GenerationJob, adapters: Mapping[str, LoRAAdapter]) -> dict[str, LoRAAdapter]:
    return {asked.name: adapters[asked.name] for asked in job.spec.adapters or ()}


def fail_for_model(failure: LoadFailure | None, queue: Iterator[BindCandidate], most: int) -> list[Finish]:
    """Return the failures of jobs that wait for a model which cannot be loaded; none while it can.

    Args:
        failure: Why the model cannot be loaded.
        queue: Jobs that wait.
        most: How many may fail in one pass; the next pass goes on.
    """
    if failure is None:
        return []
    message = job_status.model_not_available(failure.reason)
    return [
        Finish(item.job, Phase.FAILED, ErrorCode.MODEL_NOT_AVAILABLE, message, costs_retry=item.costs_retry)
        for item in itertools.islice(queue, most)
    ]


def _requeue(item: BindCandidate) -> Requeue:
    reason = WaitingReason.SUSPENDED if item.job.spec.suspend else WaitingReason.RETRYING
    return Requeue(item.job, item.costs_retry, reason, item.message, item.suspect_group_size)
