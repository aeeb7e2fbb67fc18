"""Where jobs with adapters are bound: of equally loaded workers to one that holds them, and nobody waits for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from kubediffusion.operator.actions import Bind, Finish
from kubediffusion.operator.snapshots import ModelSnapshot
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.adapters import AdapterReport
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.testing import adapter, bound_job, job
from unit.operator.builders import holding, plan, pod_of, snapshot, worker

NAMES = ("crayon", "ink", "oil")
ADAPTERS = {name: adapter(name) for name in NAMES}
HELD = AdapterReport(digest="ab" * 32, rank=8)
REFUSED = AdapterReport(reason="RankTooLarge", message="rank 512")

chosen = st.lists(st.sampled_from(NAMES), unique=True, max_size=3)


def naming(names: list[str]) -> Any:
    return [{"name": name} for name in names] or None


@st.composite
def clusters(draw: st.DrawFn) -> ModelSnapshot:
    """Ready workers that hold some adapters and have some jobs, and jobs that name some."""
    workers, bound = [], {}
    for n in range(draw(st.integers(1, 4))):
        reports = {name: draw(st.sampled_from([HELD, HELD, REFUSED])) for name in draw(chosen)}
        built = holding(worker(n, WorkerState.READY), reports)
        workers.append(built)
        pod = pod_of(built).metadata.name
        has = [
            bound_job(f"bound-{n}-{k}", worker=pod, adapters=naming(draw(chosen)))
            for k in range(draw(st.integers(0, 3)))
        ]
        bound[pod] = has
    waiting = [
        job(f"waiting-{n}", age=draw(st.integers(0, 9)), adapters=naming(draw(chosen)))
        for n in range(draw(st.integers(0, 8)))
    ]
    size = draw(st.integers(1, 4))
    return replace(snapshot(waiting, workers, bound, max_batch_size=size), adapters=ADAPTERS)


def at_start(cluster: ModelSnapshot) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Places that each worker's jobs take, and the adapters that it holds or loads."""
    load, known = {}, {}
    for built in cluster.workers:
        pod = pod_of(built)
        (told,) = [c.message for c in pod.status.conditions if c.type == "kubediffusion.io/AdaptersKnown"]
        load[pod.metadata.name] = cluster.load(built)
        known[pod.metadata.name] = {name for name in NAMES if f'"{name}":{{"digest"' in told}
        known[pod.metadata.name] |= {name for item in cluster.jobs_of(built) for name in named(item)}
    return load, known


def named(item: GenerationJob) -> list[str]:
    return [asked.name for asked in item.spec.adapters or ()]


def binds(cluster: ModelSnapshot) -> list[Bind]:
    return [action for action in plan(cluster) if isinstance(action, Bind)]


CASES: dict[str, Callable[[ModelSnapshot], object]] = {
    "a job goes to the one that holds more of its adapters": lambda cluster: (
        len({tuple(sorted(held)) for held in at_start(cluster)[1].values()}) > 1
        and len(set(at_start(cluster)[0].values())) == 1
        and any(named(action.job) for action in binds(cluster))
    ),
    "a worker that holds them all is busier than one that holds none": lambda cluster: any(
        set(named(action.job)) and not set(named(action.job)) & at_start(cluster)[1][action.pod]
        for action in binds(cluster)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_search_comes_upon(case: str) -> None:
    search = settings(max_examples=2000, derandomize=True)
    assert find(clusters(), lambda cluster: bool(CASES[case](cluster)), settings=search)


@given(clusters())
def test_a_job_goes_to_one_that_holds_most_of_its_adapters_among_the_least_loaded(cluster: ModelSnapshot) -> None:
    load, known = at_start(cluster)
    for action in binds(cluster):
        least = [pod for pod, taken in load.items() if taken == min(load.values())]
        names = set(named(action.job))
        assert action.pod in least
        assert len(names & known[action.pod]) == max(len(names & known[pod]) for pod in least)
        load[action.pod] += cluster.slots(action.job)
        known[action.pod] |= names


@given(clusters())
def test_who_holds_what_changes_neither_who_is_bound_nor_how_loaded_workers_are(cluster: ModelSnapshot) -> None:
    """So no worker is idle beside a job that waits, or is beside others, for the sake of an adapter."""
    plain = replace(cluster, workers=tuple(holding(each, {}) for each in cluster.workers), bound={})
    same = replace(cluster, bound={})
    assert {a.job.uid for a in binds(same)} == {a.job.uid for a in binds(plain)}
    assert sorted(Counter(a.pod for a in binds(same)).values()) == sorted(Counter(a.pod for a in binds(plain)).values())


@given(clusters())
def test_a_job_is_bound_with_its_own_adapters(cluster: ModelSnapshot) -> None:
    for action in binds(cluster):
        assert [*action.adapters] == named(action.job)


@given(clusters(), st.sampled_from(NAMES))
@settings(max_examples=50)
def test_a_job_whose_adapter_is_of_another_model_fails_and_keeps_nobody(cluster: ModelSnapshot, name: str) -> None:
    foreign = replace(cluster, adapters={**ADAPTERS, name: adapter(name, of="other")})
    for action in plan(foreign):
        if isinstance(action, Bind):
            assert name not in named(action.job)
        if isinstance(action, Finish):
            assert action.code is ErrorCode.INVALID_ADAPTER
            assert f"'{name}': it is for model 'other'" in action.message
