"""The pace of passes: what falls together is decided on together, and nothing waits for more than a pause."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator

import pytest
from builders import worker
from kubernetes.aio.client import Configuration

from kubediffusion.operator import controller as controller_module
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.controller import Controller
from kubediffusion.operator.events import EventRecorder
from kubediffusion.operator.manifests import WorkerDefaults
from kubediffusion.operator.retention import ImageRemover
from kubediffusion.operator.settings import Settings
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.client import KubernetesClient
from kubediffusion.resources.testing import NAMESPACE

DEFAULTS = WorkerDefaults(image="i", service_account="a", port=8080, s3_secret="s", log_level="INFO")

PAUSE = 0.2
"""So long that all a test does between two passes fits."""


class Counting(Controller):
    """A controller that keeps what each pass knew."""

    def __init__(self, client: KubernetesClient) -> None:
        events = EventRecorder(client, "test")
        super().__init__(Cluster(client, [], DEFAULTS, 1), events, ImageRemover(None, ""), Settings(), DEFAULTS)
        self.passes: list[tuple[str, set[str]]] = []

    def _pass(self, namespace: str, now: dt.datetime) -> None:
        self.passes.append((namespace, set(self._namespaces[namespace]._pods.items)))
        super()._pass(namespace, now)

    def see(self, ordinal: int) -> str:
        """Be told of a worker's Pod: of no model, so that nothing is to be done about it."""
        pod = worker(ordinal, WorkerState.READY).pod
        assert pod is not None
        self.observe_pod(pod, False)
        return pod.metadata.name


@pytest.fixture
async def controller(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counting]:
    """A controller whose loop has just turned: its next pass may come in a pause."""
    monkeypatch.setattr(controller_module, "PASS_PAUSE", PAUSE)
    async with KubernetesClient(Configuration()) as client:
        yield Counting(client)


async def ready() -> None:
    """Let all tasks run until each waits for a time or for somebody."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_comes_within_a_pause_is_one_more_pass_and_none_is_lost(controller: Counting):
    first = controller.see(0)
    turn = asyncio.create_task(controller._turn())
    await ready()
    assert controller.passes == [(NAMESPACE, {first})]
    second = controller.see(1)
    await ready()
    third = controller.see(2)
    await turn
    # A timer may go off a clock's tick early.
    assert time.monotonic() > controller._turned + PAUSE - 0.001
    assert len(controller.passes) == 1
    turn = asyncio.create_task(controller._turn())
    await ready()
    assert controller.passes[1:] == [(NAMESPACE, {first, second, third})]
    # Both have been decided on: there is nothing to wake up for.
    assert not controller._wake.is_set()
    turn.cancel()


async def test_who_comes_after_the_pause_is_served_at_once(controller: Counting):
    turn = asyncio.create_task(controller._turn())
    await ready()
    await asyncio.sleep(PAUSE)
    late = controller.see(0)
    await ready()
    assert turn.done()
    turn = asyncio.create_task(controller._turn())
    await ready()
    assert controller.passes == [(NAMESPACE, {late})]
    turn.cancel()
