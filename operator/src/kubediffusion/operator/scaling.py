"""How many workers there are, and when the next one may start: decided from the snapshot of one model. Pure."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Set
from dataclasses import dataclass

from kubediffusion.operator.actions import Action, CreateWorker, DeletePod, DeleteWorker, TryWorker
from kubediffusion.operator.snapshots import LIVE, NEVER, Decision, ModelSnapshot
from kubediffusion.operator.workers import ObservedWorker, WorkerState
from kubediffusion.resources.backoff import pause_after
from kubediffusion.resources.worker_names import worker_job_name

FIRST_BACK_OFF = 10.0
"""Seconds until the next worker after two crashes in a row; after one it starts at once."""
LONGEST_BACK_OFF = 300.0
"""Seconds until the next worker at most."""
SECOND_OPINION = 10.0
"""Seconds until another worker asks a service again that refused the model to one."""
FIRST_RELOAD = 300.0
"""Seconds until a model that could not be loaded may be tried again: not all of the cause is in its spec."""
LONGEST_RELOAD = 3600.0
"""Seconds until then at most."""
OTHERS_GRACE = dt.timedelta(seconds=5)
"""How long other containers of a Pod may run on after its worker has ended."""
KEPT_FAILURES = 7
"""Failed workers kept as the record of a model's crashes: their number sets the pause before the next."""


@dataclass(frozen=True)
class LoadFailure:
    """A model that cannot be loaded.

    Attributes:
        reason: What the worker said.
        until: When it may be tried again; None where that is not known yet.
    """

    reason: str
    until: dt.datetime | None


def load_failure(snapshot: ModelSnapshot, now: dt.datetime) -> LoadFailure | None:
    """Return why the model cannot be loaded; None when it can be, nobody knows yet, or it is time to try again.

    A corrected spec makes another template, of which nothing is known. What else it was (a Secret, a volume, a
    bucket) may be mended without the operator seeing it, so after a pause the failure counts no more. The failed
    workers are the record of the tries, as :func:`back_off_until` has it.
    """
    failed = [w for w in snapshot.failures if w.bad_model is not None]
    if not failed or snapshot.current(WorkerState.READY) or doubtful_failure(snapshot) is not None:
        return None
    reason, at = failed[-1].bad_model or "", failed[-1].failed_at
    if at is None:
        # Its Job will say in a moment.
        return LoadFailure(reason, None)
    until = at + dt.timedelta(seconds=pause_after(len(failed), FIRST_RELOAD, LONGEST_RELOAD))
    return LoadFailure(reason, until) if now < until else None


def doubtful_failure(snapshot: ModelSnapshot) -> LoadFailure | None:
    """Return why one worker could not load the model, where another has to find the same before jobs fail.

    A service that answers 403 or 404 once may be mistaken, or the node that asked it.
    """
    failed = [w for w in snapshot.failures if w.bad_model is not None]
    if len(failed) != 1 or not failed[0].doubtful or snapshot.current(WorkerState.READY):
        return None
    at = failed[0].failed_at
    until = at + dt.timedelta(seconds=SECOND_OPINION) if at is not None else None
    return LoadFailure(failed[0].bad_model or "", until)


def scale(snapshot: ModelSnapshot, now: dt.datetime, backlog: int, taken: Set[str], newly_bound: Set[str]) -> Decision:
    """Decide which workers are created for the backlog, and which outdated, failed or idle ones are deleted.

    Args:
        snapshot: What is observed.
        now: The time.
        backlog: Places of a batch that the jobs take which wait and found no room in this pass.
        taken: Uids of the jobs that are taken from their workers in this pass; those that go on are in the backlog.
        newly_bound: Pods that get a job in this pass.
    """
    settings = snapshot.model.spec.workers
    actions: list[Action] = []
    rechecks: list[dt.datetime] = []
    live = snapshot.current(*LIVE)
    for worker in snapshot.workers:
        awaited = (
            (worker.node_lost_at, worker.node_lost),
            (worker.cut_off_at, worker.cut_off),
            (worker.given_up_at, worker.given_up),
        )
        rechecks += [at for at, passed in awaited if at is not None and not passed]
    load = sum(snapshot.slots(job) for w in live for job in snapshot.jobs_of(w) if job.uid not in taken)
    wanted = min(max(math.ceil((backlog + load) / snapshot.batch), settings.min_replicas), settings.max_replicas)

    actions += _forget_failures(snapshot, snapshot.failures)
    missing = min(wanted - len(live), settings.max_replicas - len(snapshot.replicas))
    starting = _create_workers(snapshot, now, missing)
    actions += starting.actions
    rechecks += [starting.recheck_at] if starting.recheck_at is not None else []

    for worker in snapshot.workers:
        action, recheck_at = _end_pod(snapshot, worker, now)
        actions += [action] if action is not None else []
        rechecks += [recheck_at] if recheck_at is not None else []

    for worker in snapshot.workers:
        ended = worker.job.complete or worker.lost
        if ended and worker.job.metadata.deletion_timestamp is None and not snapshot.jobs_of(worker):
            # It was told to go by somebody else: a drain, or a Pod that was deleted.
            actions.append(_delete(worker, _how_it_went(worker)))
        outdated = worker.template_hash != snapshot.template_hash and worker.state in {*LIVE, WorkerState.CUT_OFF}
        if outdated and not snapshot.jobs_of(worker):
            actions.append(_delete(worker, "the model's spec has changed"))
    surplus = max(len(live) - wanted, 0)
    # While it went, another worker may have got its place; a Job waits for seconds before it makes the next Pod.
    between_pods = [w for w in live if w.between_pods and not snapshot.jobs_of(w)][:surplus]
    actions += [_delete(w, "the platform ended its Pod, and there are workers enough") for w in between_pods]
    surplus -= len(between_pods)
    # They hold nothing, and may wait for ever: no deadline ends what no node has taken. A worker that is ready is asked
    # to go only after them.
    awaiting = [
        (w.job.metadata.creation_timestamp or now, w) for w in live if w.awaits_node and not snapshot.jobs_of(w)
    ]
    idle = [
        (w.idle_since, w)
        for w in snapshot.current(WorkerState.READY)
        if w.idle_since is not None
        and w.pod is not None
        and w.pod.metadata.name not in newly_bound
        and not snapshot.jobs_of(w)
    ]
    oldest = [*sorted(awaiting, key=lambda pair: pair[0]), *sorted(idle, key=lambda pair: pair[0])]
    for since, worker in oldest[:surplus]:
        due = since + dt.timedelta(seconds=settings.idle_seconds)
        if now >= due:
            waits = "no node has taken it, and there are workers enough"
            actions.append(_delete(worker, waits if worker.awaits_node else f"idle for {settings.idle_seconds} s"))
        else:
            rechecks.append(due)
    return Decision(tuple(actions), min(rechecks, default=None))


def _create_workers(snapshot: ModelSnapshot, now: dt.datetime, missing: int) -> Decision:
    """Decide which of the missing workers are created now, and when the others may be.

    None is while its template is untried: that comes first, also where none is missing, as its owner waits to be told.
    """
    if snapshot.untried_hash:
        return Decision((TryWorker(snapshot.model, snapshot.untried_hash),))
    if (failure := load_failure(snapshot, now)) is not None:
        return Decision((), failure.until)
    allowed = back_off_until(snapshot.crashes)
    if (doubt := doubtful_failure(snapshot)) is not None:
        # One asks again; what it finds holds for the others too. Its Job will say when it failed in a moment.
        missing, allowed = min(missing, 1 - len(snapshot.current(*LIVE))), doubt.until or NEVER
    if missing <= 0:
        return Decision(())
    if allowed is not None and now < allowed:
        return Decision((), allowed if allowed is not NEVER else None)
    in_use = {w.name for w in snapshot.workers}
    names = (
        ordinal
        for ordinal in itertools.count()
        if worker_job_name(snapshot.model.name, snapshot.template_hash, ordinal) not in in_use
    )
    return Decision(
        tuple(
            CreateWorker(snapshot.model, snapshot.template_hash, ordinal)
            for ordinal in itertools.islice(names, missing)
        )
    )


def _end_pod(
    snapshot: ModelSnapshot, worker: ObservedWorker, now: dt.datetime
) -> tuple[DeletePod | None, dt.datetime | None]:
    """End a Pod whose worker has ended, or whose start stalls for ``startDeadlineSeconds``.

    Returns:
        What ends it, if it is time; when to look again, if it may be time later.
    """
    pod = worker.pod
    if pod is None or pod.terminating:
        return None, None
    if pod.outlived_since is not None:
        due = pod.outlived_since + OTHERS_GRACE
        deletion = DeletePod(snapshot.model, pod.metadata.name, pod.uid, crash=worker.crash)
    elif worker.progress_at is not None and not snapshot.jobs_of(worker):
        seconds = snapshot.model.spec.workers.start_deadline_seconds
        due = worker.progress_at + dt.timedelta(seconds=seconds)
        deletion = DeletePod(snapshot.model, pod.metadata.name, pod.uid, stalled_seconds=seconds)
    else:
        return None, None
    return (None, due) if now < due else (deletion, None)


def back_off_until(failures: list[ObservedWorker]) -> dt.datetime | None:
    """Return when the next worker may start after some crashes in a row; None for at once, as after a single one.

    The failed workers themselves are the record, so a restarted operator pauses just as long.
    """
    times = [w.failed_at for w in failures if w.failed_at is not None]
    if len(failures) < 2 or not times:
        return None
    pause = pause_after(len(failures) - 1, FIRST_BACK_OFF, LONGEST_BACK_OFF)
    return max(times) + dt.timedelta(seconds=pause)


def _forget_failures(snapshot: ModelSnapshot, failures: list[ObservedWorker]) -> list[DeleteWorker]:
    actions = []
    gone = [w for w in snapshot.workers if w.state is WorkerState.FAILED and w.template_hash != snapshot.template_hash]
    actions += [_delete(w, "the model's spec has changed") for w in gone if not snapshot.jobs_of(w)]
    if snapshot.current(WorkerState.READY):
        actions += [_delete(w, "another worker is ready") for w in failures if not snapshot.jobs_of(w)]
    else:
        oldest = sorted(failures, key=lambda w: (w.job.metadata.creation_timestamp or NEVER, w.name))
        actions += [_delete(w, "enough later ones have failed") for w in oldest[:-KEPT_FAILURES]]
    return actions


def _how_it_went(worker: ObservedWorker) -> str:
    if worker.given_up:
        return "it has not been ready for long, as a worker that does not hear the API server"
    return "its node is silent" if worker.node_lost else "it has ended"


def _delete(worker: ObservedWorker, reason: str) -> DeleteWorker:
    metadata = worker.job.metadata
    return DeleteWorker(metadata.namespace, metadata.name, metadata.uid, reason)
