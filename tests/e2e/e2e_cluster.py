"""A whole cluster with one real node, and what tests ask of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from e2e.e2e_node import ADDRESS, DNS, GPU, NAME, Node
from kubediffusion.local import binaries
from kubediffusion.local.controlplane import ControlPlane
from kubediffusion.local.reservations import Reservations
from kubediffusion.local.s3 import ObjectStore

GPUS = 2
COMMAND_SECONDS = 600.0
POD_LOGS = Path("/var/log/pods")
"""Where kubelet keeps them."""

POLL_SECONDS = 0.2

Object = dict[str, Any]
T = TypeVar("T")


class CommandError(Exception):
    """A command failed; its message is what it said."""


def wait_for(what: str, condition: Callable[[], T | None], seconds: float = 240.0) -> T:
    """Wait until a condition holds, and return its value. A `CommandError` counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        problem: CommandError | None = None
        try:
            if value := condition():
                return value
        except CommandError as error:
            problem = error
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}; {problem or ''}"
        time.sleep(POLL_SECONDS)


class Cluster:
    """etcd, API server, controllers, scheduler, S3 server, DNS, and a node with two simulated GPUs."""

    def __init__(self, work: Path, store: Path, tags: tuple[str, ...]) -> None:
        programs = binaries.provide(modules=binaries.SETS["e2e"])
        self.folder, self._tags, self._programs, self._reservations = work, tags, programs, Reservations()
        self.logs = work / "logs"
        self.logs.mkdir(parents=True)
        self.plane = ControlPlane(work / "plane", programs, self._reservations, ADDRESS)
        self.store = ObjectStore(work / "s3", self.logs / "s3.log", programs, self._reservations, ADDRESS)
        self.node = Node(work / "node", store, self.plane, programs)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything, and wait until a pod can run and find a name."""
        self.store.process.start()
        self.plane.start()
        self.plane.wait_ready()
        self.store.process.wait_ready()
        self.apply(*_rights(), *_dns_service())
        self.node.start(self._tags)
        wait_for("the node is ready", lambda: is_true(self.get("node", NAME), "Ready"))
        gpus = [{"op": "add", "path": f"/status/capacity/{GPU.replace('/', '~1')}", "value": str(GPUS)}]
        self.kubectl("patch", "node", NAME, "--subresource=status", "--type=json", f"--patch={json.dumps(gpus)}")
        wait_for("the node offers its GPUs", lambda: self.get("node", NAME)["status"]["allocatable"].get(GPU))

    def stop(self) -> None:
        """Stop everything, pods last known included: the namespace takes those along."""
        with ExitStack() as all_of_them:
            all_of_them.callback(self._reservations.release)
            all_of_them.callback(self.store.process.stop)
            all_of_them.callback(self.plane.stop)
            all_of_them.callback(self.node.stop)

    def run(self, program: str, *arguments: str, stdin: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
        """Run one of the cluster's clients as an administrator."""
        environment = {
            "KUBECONFIG": str(self.plane.admin),
            "HOME": str(self.folder),
            "PATH": os.environ["PATH"],
        }
        answer = subprocess.run(
            [str(self._programs.path(program)), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            **({"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}),
        )
        if answer.returncode != 0:
            raise CommandError(f"{program} {' '.join(arguments)}: {answer.stderr.strip()} {answer.stdout[-2000:]}")
        return answer.stdout

    def helm(self, *arguments: str, stdin: str | None = None) -> str:
        """Run Helm."""
        return self.run("helm", *arguments, stdin=stdin)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl."""
        return self.run("kubectl", *arguments, stdin=stdin)

    def apply(self, *objects: Object) -> None:
        """Apply objects."""
        self.kubectl("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """Read an object."""
        found: Object = json.loads(self.kubectl("get", kind, name, f"--namespace={namespace}", "--output=json"))
        return found

    def list(self, kind: str, namespace: str = "", selector: str = "") -> list[Object]:
        """Read objects."""
        found = self.kubectl("get", kind, f"--namespace={namespace}", f"--selector={selector}", "--output=json")
        items: list[Object] = json.loads(found)["items"]
        return items

    def record(self, name: str) -> None:
        """Keep what explains a failure, as it goes with the namespace: objects, Events, and the pods' own logs."""
        folder = self.logs / name
        folder.mkdir(exist_ok=True)
        kinds = "generationjobs,diffusionmodels,loraadapters,jobs,pods,events,nodes"
        for file, arguments in {
            "objects.txt": ("get", kinds, "--all-namespaces", "--output=wide"),
            "objects.yaml": ("get", kinds, "--all-namespaces", "--output=yaml"),
        }.items():
            with suppress(CommandError):
                (folder / file).write_text(self.kubectl(*arguments))
        shutil.copytree(POD_LOGS, folder / "pods", dirs_exist_ok=True)


def is_true(found: Object, condition: str) -> bool:
    """Return whether a condition of an object is true."""
    conditions: Iterable[Object] = found.get("status", {}).get("conditions", [])
    return any(c["type"] == condition and c["status"] == "True" for c in conditions)


def _rights() -> Iterable[Object]:
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    rbac = "rbac.authorization.k8s.io"
    yield {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": "coredns"}, "rules": rules}
    yield {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "coredns"},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "coredns"},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": "coredns"}],
    }


def _dns_service() -> Iterable[Object]:
    """The Service that pods ask for names, in front of CoreDNS on the node."""
    ports = [{"name": name, "port": 53, "protocol": name.upper()} for name in ("udp", "tcp")]
    place = {"name": "kube-dns", "namespace": "kube-system"}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": place, "spec": {"clusterIP": DNS, "ports": ports}}
    yield {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**place, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": True}}],
        "ports": ports,
    }
