"""Probes a running container: startup first, then readiness and liveness beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from kubediffusion.local.node.checks import Target, check
from kubediffusion.local.node.objects import Probe
from kubediffusion.local.node.probes import ProbeState


@dataclass(frozen=True)
class ProbeCallbacks:
    """What is called with the results of probes.

    Attributes:
        started: The container has started up.
        ready: Whether it may be sent work has changed.
        unhealthy: It must be ended, for this reason.
    """

    started: Callable[[], None]
    ready: Callable[[bool], None]
    unhealthy: Callable[[str], None]


async def watch(target: Target, callbacks: ProbeCallbacks) -> None:
    """Probe a container until cancelled, or until nothing is left to ask."""
    container = target.container
    if container.startup_probe and not await _passes(container.startup_probe, target, callbacks):
        return
    callbacks.started()
    if container.readiness_probe is None:
        callbacks.ready(True)
    async with asyncio.TaskGroup() as group:
        if container.readiness_probe:
            group.create_task(_readiness(container.readiness_probe, target, callbacks))
        if container.liveness_probe:
            group.create_task(_passes(container.liveness_probe, target, callbacks, forever=True))


async def _passes(probe: Probe, target: Target, callbacks: ProbeCallbacks, *, forever: bool = False) -> bool:
    """Probe until the verdict: startup is over when it passes, liveness only when it fails."""
    state = ProbeState()
    await asyncio.sleep(probe.initial_delay_seconds)
    while True:
        reason = await check(probe, target)
        state = state.observe(reason is None, probe)
        if state.verdict is False:
            callbacks.unhealthy(reason or "")
            return False
        if state.verdict and not forever:
            return True
        await asyncio.sleep(probe.period_seconds)


async def _readiness(probe: Probe, target: Target, callbacks: ProbeCallbacks) -> None:
    state = ProbeState(verdict=False)
    await asyncio.sleep(probe.initial_delay_seconds)
    while True:
        before = state.verdict
        state = state.observe(await check(probe, target) is None, probe)
        if state.verdict is not None and state.verdict != before:
            callbacks.ready(state.verdict)
        await asyncio.sleep(probe.period_seconds)
