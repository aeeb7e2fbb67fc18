"""The life of one container: started, probed, ended, and started again as its pod's policy says."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace

from kubediffusion.local.errors import log_tail
from kubediffusion.local.node import events, probing
from kubediffusion.local.node.checks import Target
from kubediffusion.local.node.environment import ConfigurationError
from kubediffusion.local.node.objects import Container, ContainerStatus, TerminatedState
from kubediffusion.local.node.probing import ProbeCallbacks
from kubediffusion.local.node.process import CANNOT_START, CannotStartError, ContainerProcess, Launch
from kubediffusion.local.node.restarts import CrashBackoff, should_restart
from kubediffusion.local.node.status import (
    CONFIGURATION_ERROR,
    CRASH_LOOP,
    ContainerReport,
    ContainerWaiting,
    Running,
    Terminated,
)
from kubediffusion.local.node.stopping import Stop
from kubediffusion.local.node.workplace import Workplace
from kubediffusion.resources.apiserver.errors import KubernetesError

MESSAGE_BYTES = 4096
LOG_MESSAGE_BYTES = 2048
LOG_MESSAGE_LINES = 80
RETRY_SECONDS = 2.0
LOST = 137
UNKNOWN = "ContainerStatusUnknown"


@dataclass(frozen=True)
class ContainerPolicy:
    """How a container of this pod is treated.

    Attributes:
        restart_policy: The pod's.
        backoff: How long it waits after crashes.
        grace_seconds: How long it may take to end.
        warn: Creates an Event of a reason and a message.
    """

    restart_policy: str
    backoff: CrashBackoff
    grace_seconds: float
    warn: Callable[[str, str], None]


class ContainerRunner:
    """Runs a container to its end.

    Attributes:
        report: Everything there is to say about it; `changed` is called after each change.
    """

    def __init__(self, container: Container, policy: ContainerPolicy, stop: Stop, changed: Callable[[], None]) -> None:
        self._container = container
        self._policy = policy
        self._stop = stop
        self._changed = changed
        self._crashes = 0
        self.report = ContainerReport(container.name, container.image)

    def resume(self, status: ContainerStatus) -> None:
        """Take over what a former process of this node reported, whose containers died with it."""
        ended = status.state.terminated
        if status.state.running:
            ended = TerminatedState(
                exit_code=LOST,
                reason=UNKNOWN,
                message="The container was gone when the node came back",
                started_at=status.state.running.started_at,
                finished_at=_now(),
            )
        last = _terminated(status.last_state.terminated)
        self.report = replace(self.report, restarts=status.restart_count, last=last)
        if end := _terminated(ended):
            self._crashes = 1
            self.report = replace(self.report, state=end)

    def set_waiting(self, reason: str, message: str) -> None:
        """Set the reason for which the container does not run yet."""
        self._update(state=ContainerWaiting(reason, message))

    def abandon(self) -> None:
        """Mark the container as ended, so that no ended pod has a container that waits."""
        if isinstance(self.report.state, ContainerWaiting):
            never = "The container was never started"
            end = Terminated(LOST, UNKNOWN, never, None, _now(), "")
            self._update(state=self.report.last or end)

    async def run(self, workplace: Workplace) -> None:
        """Run it until it has ended for good."""
        while not self._stop.asked:
            if isinstance(self.report.state, Terminated) and not await self._may_restart(self.report.state):
                return
            launch = await self._launch(workplace)
            if launch is None:
                return
            started = _now()
            end = await self._run_once(launch, workplace)
            self._crashes = self._policy.backoff.count(self._crashes, (_now() - started).total_seconds())
            self._update(state=end, started=False, ready=False)

    def _update(self, **changes: object) -> None:
        self.report = replace(self.report, **changes)  # type: ignore[arg-type] # names of fields
        self._changed()

    async def _may_restart(self, end: Terminated) -> bool:
        """Wait out the back-off before a restart; returns whether there is to be one."""
        if not should_restart(self._policy.restart_policy, end.exit_code):
            return False
        delay = self._policy.backoff.delay(self._crashes)
        if delay:
            message = f"back-off {delay:g}s restarting failed container={self._container.name}"
            self._update(state=ContainerWaiting(CRASH_LOOP, message), last=end)
            self._policy.warn(events.BACK_OFF, message)
        if await self._stop.asked_within(delay):
            self._update(state=end)
            return False
        self.report = replace(self.report, last=end, restarts=self.report.restarts + 1)
        return True

    async def _launch(self, workplace: Workplace) -> Launch | None:
        """Gather what a run needs, for as long as it takes; nothing when the pod is to end before that."""
        while True:
            try:
                return await workplace.launch(self._container, self.report.restarts)
            except (ConfigurationError, KubernetesError) as error:
                self.set_waiting(CONFIGURATION_ERROR, str(error))
                self._policy.warn(events.FAILED, str(error))
            if await self._stop.asked_within(RETRY_SECONDS):
                return None

    async def _run_once(self, launch: Launch, workplace: Workplace) -> Terminated:
        started = _now()
        try:
            process = ContainerProcess(launch)
        except (CannotStartError, OSError) as error:
            self._policy.warn(events.FAILED, str(error))
            return Terminated(CANNOT_START, "StartError", str(error), started, _now(), "")
        identity = f"process://{process.pid}"
        self._update(state=Running(started), container_id=identity)
        try:
            code = await self._attend(process, launch, workplace)
        finally:
            process.kill()
        message = termination_message(launch, self._container.termination_message_policy, code)
        return Terminated(code, "Error" if code else "Completed", message, started, _now(), identity)

    async def _attend(self, process: ContainerProcess, launch: Launch, workplace: Workplace) -> int:
        """Probe a process until it ends, by itself or because it is told to."""
        unhealthy = asyncio.Event()

        def end(reason: str) -> None:
            self._policy.warn(events.UNHEALTHY, f"container {self._container.name} is ended: {reason}")
            unhealthy.set()

        callbacks = ProbeCallbacks(
            started=lambda: self._update(started=True),
            ready=lambda ready: self._update(ready=ready),
            unhealthy=end,
        )
        mounts = workplace.mounts(self._container, launch.message)
        target = Target(self._container, workplace.facts.pod_ip, launch.environment, launch.folder, mounts.translate)
        ended = asyncio.create_task(process.wait())
        helpers = [
            asyncio.create_task(probing.watch(target, callbacks)),
            asyncio.create_task(self._end_when_stopped(process)),
            asyncio.create_task(self._end_when(unhealthy, process)),
        ]
        try:
            # A helper that fails is a defect of this node, and must not leave a process unattended.
            watched = {ended, *helpers}
            while not ended.done():
                done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            return ended.result()
        finally:
            for task in (ended, *helpers):
                task.cancel()
            await asyncio.gather(ended, *helpers, return_exceptions=True)

    async def _end_when_stopped(self, process: ContainerProcess) -> None:
        await self._stop.wait()
        kill = asyncio.create_task(self._stop.wait_kill())
        stop = asyncio.create_task(process.stop(self._stop.grace_seconds))
        try:
            await asyncio.wait({kill, stop}, return_when=asyncio.FIRST_COMPLETED)
            process.kill()
        finally:
            kill.cancel()
            stop.cancel()

    async def _end_when(self, unhealthy: asyncio.Event, process: ContainerProcess) -> None:
        await unhealthy.wait()
        await process.stop(self._policy.grace_seconds)


def termination_message(launch: Launch, policy: str, exit_code: int) -> str:
    """Return a container's termination message."""
    try:
        message = launch.message.read_bytes()[:MESSAGE_BYTES].decode(errors="replace")
    except OSError:  # the container removed it, or put something else in its place
        message = ""
    if not message and policy == "FallbackToLogsOnError" and exit_code != 0:
        message = log_tail(launch.log, LOG_MESSAGE_LINES)[-LOG_MESSAGE_BYTES:]
    return message


def _terminated(state: TerminatedState | None) -> Terminated | None:
    if state is None:
        return None
    return Terminated(
        state.exit_code,
        state.reason,
        state.message,
        state.started_at,
        state.finished_at or _now(),
        state.container_id,
    )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
