"""KubeDiffusion, served from a local cluster: installed, awaited, and watched for parts that fail."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubediffusion.local import binaries, installation
from kubediffusion.local.binaries import Binaries
from kubediffusion.local.cluster import ClusterSettings, LocalCluster
from kubediffusion.local.errors import LocalError, NotInTimeError, PartFailedError
from kubediffusion.local.node.devices import count_gpus
from kubediffusion.local.progress import step
from kubediffusion.resources import meta

NAMESPACE = "default"
PARTS_SECONDS = 180.0
# Loading a large model into a GPU takes minutes.
MODEL_SECONDS = 900.0
POLL_SECONDS = 0.3
# A part that has ended this often will not recover by itself while somebody looks at a progress line.
PATIENCE = 2


@dataclass(frozen=True)
class ServeOptions:
    """What to serve, and where.

    Attributes:
        port: The port of 127.0.0.1.
        model: The folder of the default model.
    """

    port: int
    model: Path


class Service:
    """KubeDiffusion in a running cluster.

    Attributes:
        cluster: The cluster.
        url: Where the HTTP API answers.
    """

    def __init__(self, cluster: LocalCluster, programs: Binaries, options: ServeOptions) -> None:
        self.cluster = cluster
        self.kubectl = programs.path("kubectl")
        self.url = f"http://localhost:{options.port}"
        self._options = options

    def install(self) -> None:
        """Apply the manifests."""
        cluster = self.cluster
        cluster.store.create_bucket(installation.BUCKET)
        crds = installation.crds()
        cluster.apply(crds)
        names = [f"customresourcedefinition/{crd['metadata']['name']}" for crd in crds]
        cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
        cluster.apply(installation.cluster_scoped())
        cluster.apply(installation.namespaced(NAMESPACE, cluster.store.settings))
        cluster.apply(
            [
                installation.operator(NAMESPACE),
                installation.api(NAMESPACE, port=self._options.port),
                installation.default_model(NAMESPACE, self._options.model, count_gpus()),
            ]
        )

    def wait_served(self) -> None:
        """Wait until operator and API are ready."""

        def served() -> bool:
            found = self.cluster.list("deployments", NAMESPACE)
            return all(deployment.get("status", {}).get("readyReplicas") for deployment in found)

        self._wait("operator and API", served, PARTS_SECONDS)

    def wait_model(self) -> None:
        """Wait until a worker holds the default model.

        Raises:
            LocalError: It cannot be loaded.
        """

        def loaded() -> bool:
            model = self.cluster.get(meta.DIFFUSION_MODELS, installation.DEFAULT_MODEL, NAMESPACE)
            status = model.get("status", {})
            for condition in status.get("conditions", []):
                if condition["type"] == "Available" and condition["status"] == "False":
                    raise LocalError(f"the model in {self._options.model} is not available: {condition['message']}")
            return bool(status.get("workers", {}).get("ready"))

        self._wait("model", loaded, MODEL_SECONDS)

    def check(self) -> None:
        """Raise `PartFailedError` if a process of the cluster has ended or a pod of ours keeps ending."""
        self.cluster.check()
        for pod in self.cluster.list("pods", NAMESPACE):
            for container in pod.get("status", {}).get("containerStatuses", []):
                if container["restartCount"] >= PATIENCE:
                    raise PartFailedError(pod["metadata"]["name"], "keeps ending", self._log(pod, container))

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise NotInTimeError(f"{what} not ready (the logs are under {self.cluster.logs})", seconds)
            time.sleep(POLL_SECONDS)

    def _log(self, pod: dict[str, Any], container: dict[str, Any]) -> Path:
        metadata = pod["metadata"]
        folder = f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        # The present run may not have said anything yet; the one before has ended.
        return self.cluster.logs / "pods" / folder / f"{container['name']}.{container['restartCount'] - 1}.log"


@contextmanager
def serving(options: ServeOptions) -> Iterator[Service]:
    """Run KubeDiffusion on this machine for as long as the block runs.

    Raises:
        LocalError: It cannot: the machine lacks something, or a part fails.
    """
    binaries.require_supported_machine()
    require_free(options.port)
    if not (options.model / "model_index.json").exists():
        raise LocalError(f"{options.model} holds no diffusers pipeline (no model_index.json); choose one with MODEL=")
    programs = binaries.provide()
    with ExitStack() as stack:
        with step("Starting etcd, Kubernetes, S3 and a node") as progress:
            cluster = LocalCluster(ClusterSettings(), programs)
            progress.detail = f"logs in {cluster.logs}"
            stack.enter_context(cluster)
        service = Service(cluster, programs, options)
        try:
            with step("Starting operator and API"):
                service.install()
                service.wait_served()
            with step("Loading the model"):
                service.wait_model()
            yield service
        except LocalError:
            cluster.check()  # a part that has ended explains more than what failed without it
            raise


def require_free(port: int) -> None:
    """Raise `LocalError` if something answers on a port of localhost, on whichever of its addresses."""
    with suppress(OSError), socket.create_connection(("localhost", port), timeout=2):
        raise LocalError(f"port {port} is taken by another program; stop that, or choose a port with PORT=")
