"""The pace of passes: what falls together is decided on together, and nothing waits for more than a pause."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import AsyncIterator

import pytest
from kubernetes.aio.client import Configuration

from kubediffusion.local.testing import eventually
from kubediffusion.operator import loop as loop_module
from kubediffusion.operator.changes import Changes
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.events import EventRecorder
from kubediffusion.operator.executor import ActionExecutor
from kubediffusion.operator.image_releases import ImageReleases
from kubediffusion.operator.images import ImageRemover
from kubediffusion.operator.loop import SchedulingLoop
from kubediffusion.operator.manifests import WorkerDefaults
from kubediffusion.operator.retention import Retention
from kubediffusion.operator.snapshots import SchedulerOptions
from kubediffusion.operator.store import Store
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.testing import NAMESPACE
from unit.operator.builders import HASH, worker

DEFAULTS = WorkerDefaults(image="i", service_account="a", port=8080, s3_secret="s", log_level="INFO")

PAUSE = 0.2
"""So long that all a test does between two passes fits."""


class RecordingStore(Store):
    """A store that records when the loop took changes, and of which namespaces."""

    def __init__(self) -> None:
        super().__init__(lambda _: HASH, dt.timedelta())
        self.taken: list[tuple[list[str], int]] = []
        self.times: list[float] = []
        self.pods = 0

    def take_changes(self) -> Changes:
        changes = super().take_changes()
        self.taken.append((list(changes.namespaces), self.pods))
        self.times.append(time.monotonic())
        return changes

    def see_pod(self, ordinal: int) -> None:
        """Be told of a worker's Pod: of no model, so that nothing is to be done about it."""
        pod = worker(ordinal, WorkerState.READY).pod
        assert pod is not None
        self.pods += 1
        self.observe_pod(pod, False)


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RecordingStore]:
    """The store of a loop that runs and has just turned for the first time."""
    monkeypatch.setattr(loop_module, "PASS_PAUSE", PAUSE)
    store = RecordingStore()
    async with KubernetesClient(Configuration()) as client:
        cluster, recorder = Cluster(client, [], DEFAULTS, 1), EventRecorder(client, "test")
        releases = ImageReleases(cluster, ImageRemover(None, ""), recorder)
        retention, executor = Retention(cluster, releases), ActionExecutor(cluster, store, recorder)
        loop = SchedulingLoop(store, executor, retention, recorder, SchedulerOptions(), 5.0)
        task = asyncio.create_task(loop.run())
        await settle()
        yield store
        assert not task.done()
        assert loop.problem() is None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def settle() -> None:
    """Let all tasks run until each waits for a time or for somebody."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_comes_within_a_pause_is_one_more_pass_and_none_is_lost(store: RecordingStore) -> None:
    # The pause after the first turn is over: the time itself is what it is about.
    await asyncio.sleep(PAUSE)
    store.see_pod(0)
    await settle()
    assert store.taken == [([], 0), ([NAMESPACE], 1)]
    store.see_pod(1)
    await settle()
    store.see_pod(2)
    await settle()
    assert len(store.taken) == 2

    async def turned_again() -> bool:
        return len(store.taken) == 3

    await eventually("the next turn", turned_again, 30)
    assert store.taken[2] == ([NAMESPACE], 3)
    # A timer may go off a clock's tick early.
    assert store.times[2] - store.times[1] > PAUSE - 0.001
    # All have been decided on: there is nothing to wake up for.
    await asyncio.sleep(2 * PAUSE)
    assert len(store.taken) == 3


@pytest.mark.parametrize(("took", "pause"), [(0.0, 0.01), (0.001, 0.01), (0.002, 0.018), (0.005, 0.045), (1.0, 0.05)])
def test_the_pause_grows_with_the_pass_within_bounds(took: float, pause: float) -> None:
    assert loop_module.pass_pause(took) == pytest.approx(pause)


async def test_who_comes_after_the_pause_is_served_at_once(store: RecordingStore) -> None:
    await asyncio.sleep(PAUSE)
    store.see_pod(0)
    await settle()
    assert store.taken[1:] == [([NAMESPACE], 1)]
