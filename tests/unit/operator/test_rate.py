"""How often people are told."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from kubediffusion.operator.metrics import forget_model, set_model_gauges
from kubediffusion.operator.rate import TokenBucket
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.testing import NAMESPACE, job
from unit.operator.builders import snapshot, worker


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("rate", [0.125, 0.5, 1.0, 4.0])
def test_at_any_rate_one_token_may_be_taken_and_then_so_many_a_second(rate: float) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock)
    taken = 0
    for eighth in range(64 * 8 + 1):
        clock.now = eighth / 8
        while bucket.available:
            bucket.take()
            taken += 1
    assert taken == max(rate, 1) + 64 * rate


def test_what_is_not_taken_is_kept_for_a_second() -> None:
    clock = Clock()
    bucket = TokenBucket(4.0, clock)
    clock.now = 3600.0
    assert bucket.available == 4


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"namespace": NAMESPACE, "model": "emoji", **labels})


def test_the_gauges_of_a_model_go_with_it() -> None:
    seen = snapshot([job()], [worker(0, WorkerState.READY)])
    set_model_gauges(seen)
    assert sample("kubediffusion_jobs_queued") == 1
    assert sample("kubediffusion_workers", state="Ready") == 1
    assert sample("kubediffusion_workers", state="Failed") == 0
    forget_model(seen.model)
    assert sample("kubediffusion_jobs_queued") is None
    assert sample("kubediffusion_workers", state="Ready") is None
