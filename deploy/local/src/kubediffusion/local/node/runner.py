"""The life of one pod on this node: taken up, run, reported, and given back."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubediffusion.local.node.access import Access
from kubediffusion.local.node.container import ContainerPolicy, ContainerRunner
from kubediffusion.local.node.devices import Addresses, Devices
from kubediffusion.local.node.environment import ConfigurationError, Facts
from kubediffusion.local.node.events import Events
from kubediffusion.local.node.objects import Pod
from kubediffusion.local.node.restarts import NEVER, CrashBackoff
from kubediffusion.local.node.status import CREATING, PENDING, RUNNING, ContainerWaiting, PodReport, phase, pod_status
from kubediffusion.local.node.stopping import Stop
from kubediffusion.local.node.support import unsupported
from kubediffusion.local.node.volumes import RenewedToken
from kubediffusion.local.node.workplace import ApiServer, Workplace, log_name
from kubediffusion.resources.apiserver.errors import KubernetesError, NotFoundError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
FAILED_MOUNT = "FailedMount"
# What only needs time: the Node authorizer learns of a binding a moment after we do, and the API server may be away.
PASSING = frozenset({0, 403, 429, 503})


@dataclass(frozen=True)
class Node:
    """What this node's pods share."""

    name: str
    address: str
    folder: Path
    logs: Path
    access: Access
    server: ApiServer
    devices: Devices
    addresses: Addresses
    backoff: CrashBackoff


class PodRunner:
    """Runs a pod from its binding to this node until the API server has forgotten it."""

    def __init__(self, node: Node, pod: Pod) -> None:
        self._node = node
        self._pod = pod
        self._stop = Stop()
        self._deleted = asyncio.Event()
        self._gone = asyncio.Event()
        self._changed = asyncio.Event()
        self._start_time = pod.status.start_time or _now()
        self._failure: tuple[str, str] | None = None
        self._ip = ""
        self._logs = node.logs / f"{pod.metadata.namespace}_{pod.metadata.name}_{pod.metadata.uid}"
        self._written: dict[str, Any] = {}
        self._events = Events(node.access, pod, node.name)
        grace = pod.spec.termination_grace_period_seconds
        policy = ContainerPolicy(pod.spec.restart_policy, node.backoff, grace, self._events.warn)
        self._containers = [
            ContainerRunner(container, policy, self._stop, self._changed.set) for container in pod.spec.containers
        ]
        self._resume()
        self.update(pod)

    def update(self, pod: Pod) -> None:
        """Take note of a change of the pod; all that can change for a node is that it is to go."""
        if pod.metadata.deletion_timestamp:
            grace = pod.metadata.deletion_grace_period_seconds
            self._deleted.set()
            self._stop.ask(pod.spec.termination_grace_period_seconds if grace is None else grace)

    @property
    def pod(self) -> Pod:
        """The pod, as it was when it was bound."""
        return self._pod

    @property
    def active(self) -> bool:
        """Whether a container of it may still write output."""
        return phase(self._observed()) in {PENDING, RUNNING}

    def log(self, container: str, *, previous: bool = False) -> Path | None:
        """Return where the output of a container's present (or previous) run goes, if it has run."""
        for runner in self._containers:
            if runner.report.name == container and runner.report.restarts >= previous:
                return self._logs / log_name(container, runner.report.restarts - previous)
        return None

    def gone(self) -> None:
        """Take note that the API server has forgotten the pod: nothing to report, no grace."""
        self._gone.set()
        self._deleted.set()
        self._stop.ask(0)

    async def run(self) -> None:
        """Run the pod until it is gone."""
        try:
            if not self._pod.finished:
                await self._run_and_report()
            await self._deleted.wait()
            await self._remove()
        finally:
            self._node.devices.release(self._pod.metadata.uid)
            self._node.addresses.release(self._pod.metadata.uid)

    async def _run_and_report(self) -> None:
        reporter = asyncio.create_task(self._report())
        try:
            await self._run()
        finally:
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)
        # The last report tells how it ended.
        await self._persist(self._write)

    async def _run(self) -> None:
        if reason := unsupported(self._pod):
            self._failure = ("Unsupported", reason)
            return
        uid = self._pod.metadata.uid
        indices = self._node.devices.assign(uid, self._pod.gpus)
        if indices is None:
            # The scheduler counts too, so this is a pod that was bound by hand.
            self._failure = ("UnexpectedAdmissionError", f"the node has fewer than {self._pod.gpus} GPUs free")
            return
        self._ip = self._node.address if self._pod.spec.host_network else self._node.addresses.assign(uid)
        workplace = Workplace(
            self._pod,
            self._node.folder / uid,
            self._logs,
            Facts(self._ip, self._node.address, self._node.devices.variables(indices)),
            self._node.access,
            self._node.server,
        )
        self._changed.set()
        helpers = [asyncio.create_task(self._deadline())]
        try:
            if await self._prepare(workplace):
                helpers.extend(asyncio.create_task(self._renew(workplace, token)) for token in workplace.volumes.tokens)
                async with asyncio.TaskGroup() as group:
                    for container in self._containers:
                        group.create_task(container.run(workplace))
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            for container in self._containers:
                container.abandon()
            workplace.remove()
            # Before the end is reported: whoever sees the pod ended may count on its devices.
            self._node.devices.release(uid)

    def _resume(self) -> None:
        """Take over what a former process of this node has reported."""
        known = {status.name: status for status in self._pod.status.container_statuses}
        for container in self._containers:
            if status := known.get(container.report.name):
                container.resume(status)

    async def _prepare(self, workplace: Workplace) -> bool:
        """Make the pod's volumes, for as long as it takes; returns whether that came before its end."""
        while not self._stop.asked:
            try:
                await workplace.prepare()
            except (ConfigurationError, KubernetesError, OSError) as error:
                logger.info("pod %s waits: %s", self._pod, error)
                self._set_waiting(str(error))
                if not (isinstance(error, KubernetesError) and error.status in PASSING):
                    self._events.warn(FAILED_MOUNT, str(error))
            else:
                return True
            await self._stop.asked_within(RETRY_SECONDS)
        return False

    def _set_waiting(self, message: str) -> None:
        for container in self._containers:
            if isinstance(container.report.state, ContainerWaiting):
                container.set_waiting(CREATING, message)

    async def _deadline(self) -> None:
        seconds = self._pod.spec.active_deadline_seconds
        if seconds is None:
            return
        await asyncio.sleep(max(0.0, seconds - (_now() - self._start_time).total_seconds()))
        self._failure = ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
        self._stop.ask(self._pod.spec.termination_grace_period_seconds)

    async def _renew(self, workplace: Workplace, token: RenewedToken) -> None:
        while True:
            await asyncio.sleep(token.seconds)
            while True:
                try:
                    await workplace.volumes.renew(token)
                except KubernetesError as error:
                    # The old token is good for a while; that its account is gone is no reason to end the pod.
                    logger.warning("pod %s: its token was not renewed: %s", self._pod, error)
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    break

    async def _report(self) -> None:
        """Write the status after each change. Changes that come while one is written are written together."""
        while not self._gone.is_set():
            await self._changed.wait()
            self._changed.clear()
            await self._persist(self._write)

    async def _write(self) -> None:
        known = self._written.get("conditions", [])
        status = pod_status(self._observed(), known, _now())
        if status == self._written or self._gone.is_set():
            return
        await self._node.access.write_status(self._pod, status)
        self._written = status

    def _observed(self) -> PodReport:
        return PodReport(
            containers=[container.report for container in self._containers],
            restart_policy=NEVER if self._stop.asked else self._pod.spec.restart_policy,
            start_time=self._start_time,
            host_ip=self._node.address,
            pod_ip=self._ip,
            failure=self._failure,
        )

    async def _remove(self) -> None:
        await self._persist(lambda: self._node.access.remove(self._pod))

    async def _persist(self, write: Callable[[], Any]) -> None:
        """Write until the API server has taken it, or the pod is gone."""
        while not self._gone.is_set():
            try:
                await write()
            except NotFoundError:
                self.gone()
            except KubernetesError as error:
                logger.warning("pod %s: %s", self._pod, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), RETRY_SECONDS)
            else:
                return


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
