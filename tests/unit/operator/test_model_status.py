"""What a DiffusionModel says of itself."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from kubediffusion.operator.containers import ContainerState, ContainerStatus, ContainerWaiting
from kubediffusion.operator.job_status import waiting_reason
from kubediffusion.operator.model_status import model_status
from kubediffusion.operator.snapshots import ModelSnapshot
from kubediffusion.operator.workers import ObservedWorker, WorkerState
from kubediffusion.resources.conditions import Condition, ConditionStatus, ModelReason, find_condition
from kubediffusion.resources.diffusion_model import DiffusionModelStatus, WorkerCounts
from kubediffusion.resources.testing import NOW, bound_job, job
from unit.operator.builders import HASH, OLD_HASH, pod_name, pod_of, snapshot, worker

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
LATER = NOW + dt.timedelta(minutes=1)


def status_of(seen: ModelSnapshot, revision: str | None = None, now: dt.datetime = NOW) -> DiffusionModelStatus:
    return model_status(seen, revision, now)


def condition_of(status: DiffusionModelStatus) -> Condition:
    condition = find_condition(status.conditions, "Available")
    assert condition is not None
    return condition


def available(status: DiffusionModelStatus) -> tuple[str, str]:
    condition = condition_of(status)
    return condition.status, condition.reason


def told(seen: ModelSnapshot, status: DiffusionModelStatus) -> ModelSnapshot:
    """The same snapshot, once its model carries a status."""
    return replace(seen, model=seen.model.model_copy(update={"status": status}))


def test_nobody_knows_of_a_model_that_was_never_loaded() -> None:
    assert available(status_of(snapshot())) == (UNKNOWN, ModelReason.NOT_YET_LOADED)
    assert available(status_of(snapshot(workers=[worker(0, WorkerState.STARTING)]))) == (UNKNOWN, "NotYetLoaded")


def test_a_model_that_a_worker_holds_is_available() -> None:
    status = status_of(snapshot(workers=[worker(0, WorkerState.READY), worker(1, WorkerState.FAILED)]))
    assert available(status) == (TRUE, ModelReason.READY)
    assert condition_of(status).message == "1 worker ready"


def test_a_model_that_was_loaded_before_is_available_without_a_worker() -> None:
    was_ready = status_of(snapshot(workers=[worker(0, WorkerState.READY)]))
    idle = status_of(told(snapshot(), was_ready))
    assert available(idle) == (TRUE, ModelReason.SCALED_TO_ZERO)
    assert available(status_of(told(snapshot(), idle))) == (TRUE, ModelReason.SCALED_TO_ZERO)


def test_what_was_loaded_under_another_template_says_nothing_of_todays() -> None:
    was_ready = status_of(snapshot(workers=[worker(0, WorkerState.READY)]), "rev-1")
    changed = replace(told(snapshot(), was_ready), template_hash="other")
    status = status_of(changed)
    assert available(status) == (UNKNOWN, ModelReason.NOT_YET_LOADED)
    assert status.revision is None


def test_workers_of_another_template_do_not_count() -> None:
    status = status_of(snapshot(workers=[worker(0, WorkerState.READY, template=OLD_HASH)]))
    assert available(status) == (UNKNOWN, ModelReason.NOT_YET_LOADED)
    assert status.workers == WorkerCounts()


def test_a_model_that_cannot_be_loaded_says_why() -> None:
    bad = worker(0, WorkerState.FAILED, exit_code=78, message="no model_index.json in /models/emoji")
    status = status_of(snapshot(workers=[bad]))
    assert available(status) == (FALSE, ModelReason.LOAD_FAILED)
    message = condition_of(status).message
    assert message.startswith("no model_index.json in /models/emoji (correct the spec")
    assert "kubediffusion.io/restartedAt" in message
    assert message.endswith("tried again after 12:05:00 UTC)")


def test_a_model_that_a_service_refused_once_is_not_given_up() -> None:
    refused = worker(0, WorkerState.FAILED, exit_code=69, message="the Hub answers 404")
    status = status_of(snapshot(workers=[refused]))
    assert available(status) == (UNKNOWN, ModelReason.NOT_YET_LOADED)
    assert condition_of(status).message == (
        "one worker could not load model emoji; another one tries at 12:00:10 UTC, before any job fails: "
        "the Hub answers 404"
    )


def test_a_model_that_could_not_be_loaded_may_be_tried_again_after_a_pause() -> None:
    """So that the door opens to a job that does."""
    bad = worker(0, WorkerState.FAILED, exit_code=78, message="the token is not valid", failed=301)
    status = status_of(snapshot(workers=[bad]))
    assert available(status) == (UNKNOWN, ModelReason.NOT_YET_LOADED)
    assert condition_of(status).message.endswith("what failed before: the token is not valid")


def test_one_crash_says_nothing_of_the_model() -> None:
    assert available(status_of(snapshot(workers=[worker(0, WorkerState.FAILED)]))) == (
        UNKNOWN,
        ModelReason.NOT_YET_LOADED,
    )


@pytest.mark.parametrize("order", [1, -1])
def test_crashes_in_a_row_do_and_the_last_one_is_told(order: int) -> None:
    crashed = [
        worker(0, WorkerState.FAILED, exit_code=1, message="the last", failed=1),
        worker(1, WorkerState.FAILED, exit_code=1, message="the first", failed=60),
    ]
    status = status_of(snapshot(workers=crashed[::order]))
    assert available(status) == (FALSE, ModelReason.WORKER_FAILED)
    assert condition_of(status).message == "2 workers crashed in a row, the last with exit code 1: the last"


def blocked(ordinal: int) -> ObservedWorker:
    """A worker whose image is not found."""
    starting = worker(ordinal, WorkerState.STARTING)
    waiting = ContainerStatus(name="worker", state=ContainerState(waiting=ContainerWaiting(reason="ErrImagePull")))
    status = pod_of(starting).status.model_copy(update={"container_statuses": (waiting,)})
    return replace(starting, pod=pod_of(starting).model_copy(update={"status": status}))


def test_a_model_whose_worker_cannot_start_is_not_available_until_it_does() -> None:
    seen = snapshot([job()], [blocked(0)])
    status = status_of(seen)
    assert available(status) == (FALSE, ModelReason.WORKER_CANNOT_START)
    # What its waiting jobs say.
    assert ("WorkerCannotStart", condition_of(status).message) == waiting_reason(seen, NOW)
    started = told(snapshot(workers=[worker(0, WorkerState.STARTING)]), status)
    assert available(status_of(started)) == (UNKNOWN, ModelReason.NOT_YET_LOADED)
    ready = told(snapshot(workers=[worker(0, WorkerState.READY)]), status)
    assert available(status_of(ready)) == (TRUE, ModelReason.READY)


def test_a_worker_that_cannot_start_says_nothing_of_a_model_that_others_load_or_have_loaded() -> None:
    loading = snapshot(workers=[blocked(0), worker(1, WorkerState.STARTING)])
    assert available(status_of(loading)) == (UNKNOWN, ModelReason.NOT_YET_LOADED)
    loaded = told(snapshot(workers=[blocked(0)]), status_of(snapshot(workers=[worker(0, WorkerState.READY)])))
    status = status_of(loaded)
    assert available(status) == (TRUE, ModelReason.SCALED_TO_ZERO)
    assert condition_of(status).message.endswith("ErrImagePull (WorkerCannotStart)")


def test_a_worker_that_cannot_be_created_is_told_unless_another_is_loading() -> None:
    refused = replace(snapshot(workers=[worker(0, WorkerState.STARTING)]), refusal="exceeded quota: gpus")
    messages = [condition_of(status_of(seen)).message for seen in (refused, replace(refused, workers=()))]
    assert messages == [
        "no worker has loaded the model with this spec so far; one is starting: it loads the model (WorkerStarting)",
        "no worker can be created: exceeded quota: gpus",
    ]


def test_workers_are_counted_by_what_they_do() -> None:
    states = [WorkerState.READY, WorkerState.READY, WorkerState.STARTING, WorkerState.QUEUED, WorkerState.GOING]
    workers = [worker(n, state) for n, state in enumerate(states)]
    status = status_of(snapshot([job("a"), job("b")], workers, {pod_name(0): [bound_job(worker=pod_name(0))]}))
    assert status.workers.model_copy(update={"starts": ()}) == WorkerCounts(ready=2, busy=1, starting=2)
    assert status.queued == 2


def test_the_revision_is_kept_until_another_is_told_of() -> None:
    ready = snapshot(workers=[worker(0, WorkerState.READY)])
    first = status_of(ready, "rev-1")
    assert status_of(told(ready, first)).revision == "rev-1"
    assert status_of(told(ready, first), "rev-2").revision == "rev-2"


def test_nothing_new_gives_an_equal_status_so_nothing_is_written() -> None:
    ready = snapshot([job()], [worker(0, WorkerState.READY)])
    first = status_of(ready, "rev-1")
    assert status_of(told(ready, first), "rev-1", LATER) == first


def test_the_status_says_which_template_and_generation_it_speaks_of() -> None:
    status = status_of(snapshot())
    assert (status.template_hash, status.observed_generation) == (HASH, 1)
    assert condition_of(status).observed_generation == 1
