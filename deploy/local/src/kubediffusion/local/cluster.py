"""A whole cluster on one machine: control plane, S3 server and a process node, as one thing to start and stop."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kubediffusion.local import binaries
from kubediffusion.local.binaries import Binaries
from kubediffusion.local.controlplane import ControlPlane
from kubediffusion.local.errors import LocalError, NotInTimeError
from kubediffusion.local.node.restarts import CrashBackoff
from kubediffusion.local.node.settings import NodeSettings
from kubediffusion.local.processes import STOP_SECONDS, Process, Program
from kubediffusion.local.reservations import Reservations
from kubediffusion.local.s3 import ObjectStore

FIELD_MANAGER = "kubediffusion-local"
NODE_NAME = "this-machine"
NODES_GROUP = "system:nodes"
KUBECTL_SECONDS = 120.0
FAILED_STOP_SECONDS = 1.0

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class ClusterSettings:
    """What may differ between a demo and a test.

    Attributes:
        folder: Where everything lies; a temporary folder where that is None.
        gpus: How many GPUs the node has; as many as the machine where that is None.
        cpu: How many processors the scheduler may give to pods, as a quantity.
        backoff: How long a crashed container waits.
        pods_reach: Where pods reach the API server, where that is not where it answers: a test may stand in between.
    """

    folder: Path | None = None
    gpus: int | None = None
    cpu: str = str(os.cpu_count() or 1)
    backoff: CrashBackoff = field(default_factory=CrashBackoff)
    pods_reach: str = ""


class LocalCluster:
    """A real cluster whose pods are processes of this machine. Use it as a context manager.

    Everything that it starts dies with this process, however that ends. Its folder is removed when the block ends
    well, and stays, with all logs, when it does not.

    Attributes:
        folder: Where everything lies.
        keep: Whether the folder stays in any case.
        logs: Where the logs of its parts are, and those of its pods in a folder ``pods``.
        control_plane: etcd, the API server, the controllers and the scheduler.
        store: The S3 server.
        node: The process node.
    """

    def __init__(self, settings: ClusterSettings | None = None, programs: Binaries | None = None) -> None:
        settings = settings or ClusterSettings()
        self._binaries = programs or binaries.provide()
        self._reservations = Reservations()
        self.keep = False
        self.folder = settings.folder or Path(tempfile.mkdtemp(prefix="kubediffusion-"))
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.logs = self.folder / "logs"
        self.control_plane = ControlPlane(self.folder, self._binaries, self._reservations)
        self.store = ObjectStore(self.folder / "s3", self.logs / "s3.log", self._binaries, self._reservations)
        self.node = self._node(settings)

    @property
    def admin(self) -> Path:
        """The kubeconfig of an administrator."""
        return self.control_plane.admin

    @property
    def processes(self) -> tuple[Process, ...]:
        """Every process, in the order in which they start."""
        return (*self.control_plane.processes, self.store.process, self.node)

    def start(self) -> None:
        """Start everything, and wait until a pod could run."""
        self.store.process.start()
        self.control_plane.start()
        self.node.start()
        self.control_plane.wait_ready()
        self.store.process.wait_ready()
        self.node.wait_ready()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Stop everything: pods with the node first, so that nobody sees the rest disappear.

        Args:
            seconds: How long each part may take before it is killed.
        """
        with ExitStack() as all_of_them:  # each is stopped, also when stopping another is interrupted
            all_of_them.callback(self._reservations.release)
            for process in self.processes:
                all_of_them.callback(process.stop, seconds)

    def check(self) -> None:
        """Raise `PartFailedError` if any part has ended."""
        for process in self.processes:
            process.check()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        # Where a part has failed, others wait for it in vain.
        self.stop(FAILED_STOP_SECONDS if isinstance(error, LocalError) else STOP_SECONDS)
        if not self.keep and (error is None or isinstance(error, KeyboardInterrupt)):
            shutil.rmtree(self.folder, ignore_errors=True)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as an administrator, and return its output.

        Raises:
            LocalError: It failed.
        """
        command = [str(self._binaries.path("kubectl")), *arguments]
        # kubectl keeps what it discovers in HOME; another run's is another cluster's.
        environment = {"KUBECONFIG": str(self.admin), "HOME": str(self.folder), "PATH": os.environ.get("PATH", "")}
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        try:
            answer: subprocess.CompletedProcess[str] = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=KUBECTL_SECONDS, check=False, **given
            )
        except subprocess.TimeoutExpired as error:
            raise NotInTimeError(f"kubectl {' '.join(arguments)}", KUBECTL_SECONDS) from error
        if answer.returncode != 0:
            raise LocalError(f"kubectl {' '.join(arguments)}: {answer.stderr.strip()}")
        return answer.stdout

    def apply(self, manifests: Iterable[Manifest]) -> None:
        """Apply manifests, one after the other; what another manager changed is taken back."""
        for manifest in manifests:
            self.control_plane.rest.apply(manifest, FIELD_MANAGER)

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any]:
        """Return an object."""
        return self.control_plane.rest.get(kind, name, namespace)

    def list(self, kind: str, namespace: str | None = None, selector: str = "") -> list[dict[str, Any]]:
        """Return objects."""
        return self.control_plane.rest.list(kind, namespace, selector)

    def _node(self, settings: ClusterSettings) -> Process:
        plane = self.control_plane
        identity = plane.kubeconfig(f"system:node:{NODE_NAME}", (NODES_GROUP,))
        certificate = plane.server_certificate(NODE_NAME)
        node_settings = NodeSettings(
            name=NODE_NAME,
            authority=plane.authority,
            server=settings.pods_reach or plane.url,
            network=self._reservations.network(),
            folder=self.folder / "pods",
            logs=self.logs / "pods",
            port=self._reservations.port(),
            certificate=certificate.certificate,
            key=certificate.key,
            gpus=settings.gpus,
            cpu=settings.cpu,
            backoff=settings.backoff,
        )
        return Process(
            Program(
                name="process node",
                command=[sys.executable, "-m", "kubediffusion.local.node", *node_settings.arguments()],
                log=self.logs / "process-node.log",
                healthy=self._node_ready,
                environment={"KUBECONFIG": str(identity), "LANG": os.environ.get("LANG", "C.UTF-8")},
            )
        )

    def _node_ready(self) -> bool:
        """Return whether the scheduler may use the node: it is registered, and no taint keeps pods away."""
        try:
            found = self.get("node", NODE_NAME)
        except LocalError:
            return False
        return not found["spec"].get("taints")
