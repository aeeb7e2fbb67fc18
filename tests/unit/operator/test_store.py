"""What the store takes in, what it assumes while a write is under way, and what it forgets."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest

from kubediffusion.operator.changes import JobChange
from kubediffusion.operator.object_cache import ObjectList
from kubediffusion.operator.store import Store
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Phase
from kubediffusion.resources.objects import KubernetesObject
from kubediffusion.resources.testing import NAMESPACE, NOW, bound_job, job, model
from unit.operator.builders import HASH


def a_store() -> Store:
    return Store(lambda _: HASH, dt.timedelta(seconds=30))


def newer(item: GenerationJob, version: int) -> GenerationJob:
    return item.model_copy(update={"metadata": item.metadata.model_copy(update={"resource_version": str(version)})})


def known(store: Store) -> list[GenerationJob]:
    return store.unfinished_jobs(NAMESPACE)


@pytest.mark.parametrize("told", [True, False], ids=["by the watch", "by a list"])
def test_a_model_that_is_gone_is_told_as_a_change_however_that_was_learned(told: bool) -> None:
    store = a_store()
    store.observe_model(model(), deleted=False)
    assert store.take_changes().deleted_models == []
    if told:
        store.observe_model(model(), deleted=True)
    else:
        store.replace_models(ObjectList((), 9))
    assert store.take_changes().deleted_models == [model()]
    assert store.namespace(NAMESPACE) is None


def test_a_job_that_was_deleted_while_it_was_read_does_not_come_back() -> None:
    store, held = a_store(), bound_job("held", worker="pod")
    store.observe_job(held, deleted=False)
    store.correct_job(held, newer(held, 2))
    assert known(store) == [newer(held, 2)]
    store.observe_job(newer(held, 3), deleted=True)
    store.correct_job(newer(held, 2), newer(held, 2))
    assert known(store) == []


def test_a_job_that_is_not_found_is_gone() -> None:
    store, held = a_store(), bound_job("held", worker="pod")
    store.observe_job(held, deleted=False)
    store.correct_job(held, None)
    assert known(store) == []


ENDED = newer(job("a", status=GenerationJobStatus(phase=Phase.CANCELLED, completion_time=NOW)), 5)


@pytest.fixture
def ending() -> Callable[[GenerationJob | None], Store]:
    """A store whose write has just ended a job; with what the watch had told of it until the answer came."""

    def settle(observed: GenerationJob | None) -> Store:
        store = a_store()
        store.observe_job(job("a"), deleted=False)
        store.assume_job(job("a"), None)
        if observed is not None:
            store.observe_job(observed, deleted=False)
        store.settle_job(job("a"), ENDED)
        store.take_changes()
        return store

    return settle


@pytest.mark.parametrize("observed", [None, newer(job("a"), 4)], ids=["nothing", "older"])
@pytest.mark.parametrize(
    "end", [(ENDED, False), (newer(ENDED, 6), False), (job("a"), True)], ids=["it", "later", "gone"]
)
def test_a_list_that_is_older_than_the_end_of_a_job_does_not_bring_it_back(
    ending: Callable[[GenerationJob | None], Store], observed: GenerationJob | None, end: tuple[GenerationJob, bool]
) -> None:
    store = ending(observed)
    for version in (1, 4):
        store.observe_job(newer(job("a"), version), deleted=False)
        assert known(store) == []
    store.observe_job(*end)
    assert known(store) == []
    # Once the end was told nothing is kept of it: another of that uid, as no API server has it, would be taken in.
    store.observe_job(newer(job("a"), 1), deleted=False)
    assert len(known(store)) == 1


def test_nothing_is_kept_of_an_end_that_the_watch_told_before_the_writes_answer(
    ending: Callable[[GenerationJob | None], Store],
) -> None:
    store = ending(ENDED)
    assert known(store) == []
    store.observe_job(newer(job("a"), 1), deleted=False)
    assert len(known(store)) == 1


def test_a_job_is_seen_as_it_is_assumed_until_its_write_has_ended() -> None:
    store, waiting, bound = a_store(), job("a"), bound_job("a", worker="pod")
    store.observe_job(waiting, deleted=False)
    store.assume_job(waiting, bound)
    assert known(store) == [bound]
    assert store.is_being_written(waiting.uid)
    # What the watch tells meanwhile is kept for later.
    store.observe_job(newer(waiting, 2), deleted=False)
    assert known(store) == [bound]
    store.settle_job(waiting, newer(bound, 3))
    assert known(store) == [newer(bound, 3)]
    assert not store.is_being_written(waiting.uid)


@pytest.mark.parametrize(
    ("observed", "answered", "kept"), [(2, 3, 3), (4, 3, 4), (2, None, 2), (None, 3, 3), (None, None, None)]
)
def test_the_newest_of_the_answer_and_of_what_was_observed_stays(
    observed: int | None, answered: int | None, kept: int | None
) -> None:
    store, before = a_store(), job("a")
    store.observe_job(before, deleted=False)
    store.assume_job(before, None)
    if observed is not None:
        store.observe_job(newer(before, observed), deleted=False)
    store.settle_job(before, newer(before, answered) if answered is not None else None)
    assert [item.metadata.version for item in known(store)] == ([kept] if kept is not None else [])


def test_a_job_that_was_deleted_while_it_was_written_is_gone_whatever_the_write_answered() -> None:
    store, before = a_store(), job("a")
    store.observe_job(before, deleted=False)
    store.take_changes()
    store.assume_job(before, before)
    store.observe_job(newer(before, 3), deleted=True)
    store.settle_job(before, newer(before, 2))
    assert known(store) == []
    assert store.take_changes().jobs == [JobChange(before.uid, before, None)]


def test_changes_are_told_once_in_their_order() -> None:
    store, first, second = a_store(), job("first"), job("second")
    store.observe_job(first, deleted=False)
    store.observe_job(second, deleted=False)
    store.observe_job(newer(first, 2), deleted=False)
    changes = store.take_changes()
    assert [(change.before, change.after) for change in changes.jobs] == [
        (None, first),
        (None, second),
        (first, newer(first, 2)),
    ]
    assert list(changes.namespaces) == [NAMESPACE]
    assert (store.take_changes().jobs, store.take_changes().namespaces) == ([], {})


def created(name: str, at: dt.datetime) -> GenerationJob:
    metadata = job(name).metadata.model_copy(update={"creation_timestamp": at})
    return job(name).model_copy(update={"metadata": metadata})


def test_a_new_job_was_first_seen_later_than_its_timestamp_of_whole_seconds_says() -> None:
    store, before = a_store(), dt.datetime.now(dt.UTC)
    fresh = created("fresh", before.replace(microsecond=0))
    old = created("old", before - dt.timedelta(minutes=1))
    for item in (fresh, old):
        store.observe_job(item, deleted=False)
    seen = store.pop_first_seen(fresh)
    assert seen is not None
    assert before <= seen <= dt.datetime.now(dt.UTC)
    assert (store.pop_first_seen(fresh), store.pop_first_seen(old)) == (None, None)


def in_namespace(item: KubernetesObject, name: str) -> GenerationJob:
    assert isinstance(item, GenerationJob)
    return item.model_copy(update={"metadata": item.metadata.model_copy(update={"namespace": name})})


def test_the_jobs_of_one_namespace_or_of_all_are_returned() -> None:
    store, here, there = a_store(), job("here"), in_namespace(job("there"), "b")
    store.observe_job(here, deleted=False)
    store.observe_job(there, deleted=False)
    returned = {namespace: store.unfinished_jobs(namespace) for namespace in (None, NAMESPACE, "b", "c")}
    assert returned == {None: [here, there], NAMESPACE: [here], "b": [there], "c": []}


def test_a_refusal_is_news_once_until_a_worker_is_taken() -> None:
    store = a_store()
    store.observe_model(model(), deleted=False)
    news = [store.set_worker_refusal(model(), message) for message in ("quota", "quota", "image", "quota")]
    assert news == [True, False, True, True]
    store.clear_worker_refusal(model())
    assert store.set_worker_refusal(model(), "quota")


def test_a_model_whose_status_was_written_after_its_deletion_stays_gone() -> None:
    store = a_store()
    store.observe_job(job("a"), deleted=False)
    store.take_model(model())
    state = store.namespace(NAMESPACE)
    assert state is not None
    assert state.models == {}
