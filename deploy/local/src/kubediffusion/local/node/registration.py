"""Makes this node known to the cluster and keeps it known."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubediffusion.local.node.objects import GPU
from kubediffusion.local.node.status import timestamp
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ConflictError, KubernetesError, NotFoundError
from kubediffusion.resources.apiserver.resource import STRATEGIC_MERGE_PATCH
from kubediffusion.resources.schema import format_time

logger = logging.getLogger(__name__)

LEASE_SECONDS = 40
RENEW_SECONDS = 10.0
STATUS_SECONDS = 300.0
RETRY_SECONDS = 1.0
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Capacity:
    """What the scheduler may count on.

    Attributes:
        cpu: Processors, as a quantity.
        memory: Bytes, as a quantity.
        pods: How many pods at once.
        gpus: How many GPUs.
    """

    cpu: str
    memory: str
    pods: int
    gpus: int

    @property
    def quantities(self) -> dict[str, str]:
        """The capacity as a node's status has it."""
        return {"cpu": self.cpu, "memory": self.memory, "pods": str(self.pods), GPU: str(self.gpus)}


def machine_memory() -> str:
    """Return the memory of this machine as a quantity."""
    kibibytes = MEMINFO.read_text().split("MemTotal:")[1].split()[0]
    return f"{kibibytes}Ki"


class Registration:
    """The Node object and its lease."""

    def __init__(self, client: KubernetesClient, name: str, address: str, log_port: int, capacity: Capacity) -> None:
        self._client = client
        self._name = name
        self._address = address
        self._log_port = log_port
        self._capacity = capacity
        self._since = dt.datetime.now(dt.UTC)

    async def run(self) -> None:
        """Register the node, and keep it registered until cancelled."""
        await asyncio.gather(self._repeat(self._register, STATUS_SECONDS), self._repeat(self._renew, RENEW_SECONDS))

    async def _repeat(self, act: Any, seconds: float) -> None:
        while True:
            try:
                await act()
            except KubernetesError as error:
                logger.warning("node %s: %s", self._name, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await asyncio.sleep(seconds)

    async def _register(self) -> None:
        """Create the Node, or bring the status of the one that is there up to date."""
        architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
        labels = {
            "kubernetes.io/hostname": self._name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": architecture,
        }
        status = self._status(architecture)
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self._name, "labels": labels}}
        try:
            await self._client.request("POST", "/api/v1/nodes", body={**node, "status": status})
        except ConflictError:
            path = f"/api/v1/nodes/{self._name}/status"
            await self._client.request("PATCH", path, body={"status": status}, content_type=STRATEGIC_MERGE_PATCH)

    async def _renew(self) -> None:
        spec = {
            "holderIdentity": self._name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": format_time(dt.datetime.now(dt.UTC)),
        }
        try:
            await self._client.request(
                "PATCH",
                f"{LEASES}/{self._name}",
                body={"spec": spec},
                content_type="application/merge-patch+json",
            )
        except NotFoundError:
            await self._client.request("POST", LEASES, body={"metadata": {"name": self._name}, "spec": spec})

    def _status(self, architecture: str) -> dict[str, Any]:
        quantities = self._capacity.quantities
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "the process node runs pods as processes of this machine",
            "lastHeartbeatTime": timestamp(dt.datetime.now(dt.UTC)),
            "lastTransitionTime": timestamp(self._since),
        }
        return {
            "capacity": quantities,
            "allocatable": quantities,
            "conditions": [ready],
            "addresses": [
                {"type": "InternalIP", "address": self._address},
                {"type": "Hostname", "address": self._name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._log_port}},
            "nodeInfo": {
                "operatingSystem": "linux",
                "architecture": architecture,
                "kernelVersion": platform.release(),
                "osImage": "processes of this machine",
                "containerRuntimeVersion": "process://1",
                "kubeletVersion": "process-node",
                "kubeProxyVersion": "",
                "machineID": "",
                "systemUUID": "",
                "bootID": str(os.getpid()),
            },
        }
