"""For tests against a local cluster: a namespace of their own, waiting for conditions, breaking things on purpose."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster, Manifest
from kubediffusion.local.errors import LocalError, NotInTimeError
from kubediffusion.resources.apiserver.client import KubernetesClient

# Generous: two cores may be busy with something else. A condition that comes about ends the wait at once.
POD_SECONDS = 60.0
"""For a pod to start, to become ready or to end by itself."""

POLL_SECONDS = 0.1

T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T | None], seconds: float = POD_SECONDS) -> T:
    """Wait until a condition holds, and return what it returned.

    Args:
        what: What is awaited, for the error.
        condition: Returns something true once it holds; a `LocalError` counts as not yet.
        seconds: How long to wait.

    Raises:
        NotInTimeError: It did not come about.
    """
    deadline = time.monotonic() + seconds
    while True:
        problem = None
        try:
            if value := condition():
                return value
        except LocalError as error:
            problem = error
        if time.monotonic() > deadline:
            raise NotInTimeError(what, seconds) from problem
        time.sleep(POLL_SECONDS)


async def eventually(what: str, condition: Callable[[], Awaitable[T | None]], seconds: float = POD_SECONDS) -> T:
    """Wait until a condition holds, as `wait_for` does, for conditions that are coroutines."""
    deadline = time.monotonic() + seconds
    while True:
        if value := await condition():
            return value
        if time.monotonic() > deadline:
            raise NotInTimeError(what, seconds)
        await asyncio.sleep(POLL_SECONDS)


def json_lines(log: str) -> list[dict[str, Any]]:
    """Return the lines of a part's log, each decoded.

    A line ends at a line feed and nowhere else: what clients send may hold other characters that Python counts as ends
    of lines, such as U+2028, and JSON need not escape them.
    """
    return [json.loads(line) for line in log.split("\n") if line]


async def connect(kubeconfig: Path) -> KubernetesClient:
    """Return a client with the identity of a kubeconfig."""
    configuration = kubernetes_client.Configuration()
    await kubernetes_config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    configuration.client_session_kwargs = {"trust_env": False}  # never through a proxy
    return KubernetesClient(configuration)


class Namespace:
    """A namespace of a local cluster.

    Attributes:
        cluster: The cluster.
        name: The namespace's name.
    """

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def create(self) -> None:
        """Create it, and wait until pods can be created in it."""
        self.cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}}])
        wait_for(f"a service account in {self.name}", lambda: self.get("serviceaccount", "default"))
        wait_for(f"the authority's certificate in {self.name}", lambda: self.get("configmap", "kube-root-ca.crt"))

    def delete(self) -> None:
        """Delete it, and do not wait for that."""
        self.cluster.control_plane.rest.request("DELETE", f"/api/v1/namespaces/{self.name}")

    def install(self, *parts: Manifest) -> None:
        """Create the service accounts, rights and storage Secret of the parts, and apply the parts given."""
        self.apply(*installation.namespaced(self.name, self.cluster.store.settings), *parts)

    def apply(self, *manifests: Manifest) -> None:
        """Apply manifests; those that name no namespace, to this one."""
        self.cluster.apply(
            {**manifest, "metadata": {"namespace": self.name, **manifest["metadata"]}} for manifest in manifests
        )

    def claim(self, name: str, folder: Path) -> None:
        """Make a PersistentVolumeClaim whose volume is a folder of this machine."""
        shared = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{self.name}-{name}"},
            "spec": {**shared, "capacity": {"storage": "1Mi"}, "hostPath": {"path": str(folder)}},
        }
        self.cluster.apply([volume])
        spec = {**shared, "volumeName": f"{self.name}-{name}", "resources": {"requests": {"storage": "1Mi"}}}
        self.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in this namespace."""
        return self.cluster.kubectl(f"--namespace={self.name}", *arguments, stdin=stdin)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object of this namespace, by its kind as kubectl names it."""
        return self.cluster.get(kind, name, self.name)

    def list(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind in this namespace; those alone whose labels match, where there is a selector."""
        return self.cluster.list(kind, self.name, selector)

    def pod_status(self, name: str) -> dict[str, Any]:
        """Return the status of a pod."""
        status: dict[str, Any] = self.get("pod", name).get("status", {})
        return status

    def container(self, pod: str) -> dict[str, Any]:
        """Return the status of a pod's first container.

        Raises:
            LocalError: It has none yet.
        """
        statuses: list[dict[str, Any]] = self.pod_status(pod).get("containerStatuses", [])
        if not statuses:
            raise LocalError(f"pod {pod} has no container yet")
        return statuses[0]

    def wait_phase(self, pod: str, phase: str, seconds: float = POD_SECONDS) -> dict[str, Any]:
        """Wait for a pod's phase, and return its status."""

        def reached() -> dict[str, Any] | None:
            status = self.pod_status(pod)
            return status if status.get("phase") == phase else None

        return wait_for(f"pod {pod} {phase}", reached, seconds)

    def wait_ready(self, pod: str, seconds: float = POD_SECONDS) -> dict[str, Any]:
        """Wait until a pod is ready, and return its status."""

        def ready() -> dict[str, Any] | None:
            status = self.pod_status(pod)
            return status if is_true(status, "Ready") else None

        return wait_for(f"pod {pod} ready", ready, seconds)

    def pid(self, pod: str) -> int:
        """Return the process id of a pod's first container, which runs.

        Raises:
            LocalError: It does not run.
        """
        container = self.container(pod)
        if "running" not in container["state"]:
            raise LocalError(f"the container of pod {pod} does not run: {container['state']}")
        return int(container["containerID"].removeprefix("process://"))

    def signal(self, pod: str, number: signal.Signals) -> None:
        """Send a signal to every process of a pod's first container: SIGKILL for a crash, SIGSTOP for a freeze."""
        os.killpg(self.pid(pod), number)


def is_true(status: dict[str, Any], condition: str) -> bool:
    """Return whether a condition of a status is true."""
    conditions: Iterable[dict[str, Any]] = status.get("conditions", [])
    return any(found["type"] == condition and found["status"] == "True" for found in conditions)
