"""KubeDiffusion on a real control plane, with proxies in its network, and everything that a fault can take hold of."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psutil
from botocore.config import Config

from chaos import clock
from chaos.checker import TERMINAL
from chaos.evidence import Object
from chaos.load import API_VERSION, MODELS, SCHEME
from chaos.proxy import Proxy
from chaos.recorder import Recorder
from kubediffusion.local import installation
from kubediffusion.local.cluster import ClusterSettings, LocalCluster
from kubediffusion.local.node.restarts import CrashBackoff
from kubediffusion.local.processes import Process
from kubediffusion.local.reservations import Reservations
from kubediffusion.local.testing import Namespace, eventually

FOLDER = Path(__file__).resolve().parent
STEP_SECONDS = 0.08
STEPS = 4
"""Steps of a job whose spec says nothing."""
START_SECONDS = 300.0
WORKERS = 2
"""Workers of the first model."""


class Site:
    """A cluster whose Pods reach the API server and the S3 server through proxies; serves many namespaces in turn.

    Attributes:
        cluster: The cluster.
        to_apiserver: Carries what Pods ask the API server.
        to_storage: Carries what Pods ask the S3 server.
    """

    def __init__(self, cluster: LocalCluster, to_apiserver: Proxy, to_storage: Proxy) -> None:
        self.cluster = cluster
        self.to_apiserver = to_apiserver
        self.to_storage = to_storage

    @property
    def storage_settings(self) -> dict[str, str]:
        """The ordinary AWS settings of a client that reaches storage through the proxy."""
        return self.cluster.store.settings | {"AWS_ENDPOINT_URL_S3": self.to_storage.url}


@asynccontextmanager
async def site(seed: int) -> AsyncIterator[Site]:
    """Start a cluster with its proxies."""
    with Reservations() as reservations:
        ports = reservations.port(), reservations.port()
        # More processors than the machine has: what Pods request must not make them wait.
        settings = ClusterSettings(
            cpu="64", backoff=CrashBackoff(initial=0.5, limit=2.0), pods_reach=f"https://127.0.0.1:{ports[0]}"
        )
        cluster = LocalCluster(settings)
        plane = cluster.control_plane
        identity = plane.server_certificate("fault-proxy")
        served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        served.load_cert_chain(identity.certificate, identity.key)
        reached = ssl.create_default_context(cafile=plane.authority)
        to_apiserver = Proxy(plane.url, ports[0], seed, (served, reached))
        to_storage = Proxy(cluster.store.endpoint, ports[1], seed)
        async with to_apiserver.serving(), to_storage.serving():
            # Nothing of Kubernetes' own goes through the proxies, so that blocking this loop blocks nobody.
            with cluster:
                cluster.apply(installation.cluster_scoped())
                cluster.store.create_bucket(installation.BUCKET)
                yield Site(cluster, to_apiserver, to_storage)


@dataclass(frozen=True)
class Build:
    """How parts are built: the real one, or one that is broken on purpose.

    Attributes:
        operator: More environment of the operator.
        worker: More environment of workers.
    """

    operator: Mapping[str, str] = field(default_factory=dict)
    worker: Mapping[str, str] = field(default_factory=dict)


def defect(name: str) -> dict[str, str]:
    """Return the environment that breaks a part: Python imports a module of the folder ``broken`` when it starts."""
    return {"PYTHONPATH": str(FOLDER / "broken" / name)}


class System:
    """Operator, API, two models and their workers in a namespace.

    Attributes:
        site: Where it runs.
        namespace: The namespace.
        recorder: Sees every state.
        locks: One at a time for each thing that can be stopped and started again.
    """

    def __init__(self, where: Site, namespace: Namespace, clocks: Path) -> None:
        self.site = where
        self.namespace = namespace
        self.clocks = clocks
        self.recorder = Recorder(where.cluster.admin, namespace.name)
        self.locks: dict[str, asyncio.Lock] = {}

    def install(self, build: Build) -> None:
        """Apply everything."""
        name = self.namespace.name
        faked = clock.environment(self.clocks)
        # Jobs come from one client, faster than one person's.
        unlimited = {"KUBEDIFFUSION_RATE_LIMIT": ""}
        self.namespace.apply(
            *installation.namespaced(name, self.site.storage_settings),
            installation.operator(name, {**faked, **build.operator}),
            installation.api(name, environment=unlimited),
            *(
                model_manifest(model, {**faked, **build.worker}, place=place, workers=WORKERS if place == 0 else 1)
                for place, model in enumerate(MODELS)
            ),
        )

    async def wait_ready(self) -> None:
        """Wait until all parts serve."""

        async def ready() -> bool:
            counts = [len(self.ready_pods(prefix)) for prefix in (installation.OPERATOR, installation.API, *MODELS)]
            return counts == [1, 1, WORKERS, 1]

        await eventually("operator, API and workers", ready, START_SECONDS)

    def create_job(self, name: str, spec: Object | None = None, annotations: Object | None = None) -> Object:
        """Create a GenerationJob past every proxy, and return it; its prompt is its name where the spec has none."""
        job = {
            "apiVersion": API_VERSION,
            "kind": "GenerationJob",
            "metadata": {"name": name, "namespace": self.namespace.name, "annotations": annotations or {}},
            "spec": {"prompt": name, "numInferenceSteps": STEPS, **(spec or {})},
        }
        path = f"/apis/{API_VERSION}/namespaces/{self.namespace.name}/generationjobs"
        found: Object = self.site.cluster.control_plane.rest.request("POST", path, job)
        return found

    def jobs(self) -> list[Object]:
        """Return the GenerationJobs as they are now."""
        return list(self.recorder.latest["GenerationJob"].values())

    def pods(self, prefix: str = "") -> list[Object]:
        """Return the Pods whose names begin so."""
        pods = list(self.recorder.latest["Pod"].values())
        return [pod for pod in pods if pod["metadata"]["name"].startswith(prefix)]

    def ready_pods(self, prefix: str) -> list[Object]:
        """Return the Pods that are ready, in order of their names."""
        found = [pod for pod in self.pods(prefix) if _ready(pod)]
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def workers(self) -> list[str]:
        """Return the names of the ready workers of the first model, which has several."""
        return [str(pod["metadata"]["name"]) for pod in self.ready_pods(f"{MODELS[0]}-")]

    def pid(self, pod: str) -> int | None:
        """Return the process of a Pod, as last seen; None when it has none."""
        for found in self.pods(pod):
            for container in found.get("status", {}).get("containerStatuses", ()):
                if found["metadata"]["name"] == pod and "running" in container["state"]:
                    return int(container["containerID"].removeprefix("process://"))
        return None

    def signal(self, pod: str, number: signal.Signals) -> bool:
        """Send a signal to a Pod's processes, and return whether there were any."""
        pid = self.pid(pod)
        if pid is None:
            return False
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return False
        return True

    def holder(self, uid: str) -> str | None:
        """Return the worker that a job is bound to."""
        job = self.recorder.latest["GenerationJob"].get(uid)
        return job.get("status", {}).get("worker") if job is not None else None

    async def restart(self, process: Process, seconds: float = 0.0) -> None:
        """Kill a process of the control plane and start it again after some seconds."""
        async with self.locks.setdefault(process.name, asyncio.Lock()):
            process.kill()
            await asyncio.sleep(seconds)
            # From this thread: the kernel kills it with the thread that started it.
            process.start()
            await asyncio.to_thread(process.wait_ready)

    def storage(self) -> Any:
        """Return an S3 client that goes past the proxy."""
        settings = self.site.cluster.store.settings
        return boto3.client(
            "s3",
            endpoint_url=settings["AWS_ENDPOINT_URL_S3"],
            region_name=settings["AWS_REGION"],
            aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )

    def stored_keys(self) -> set[str]:
        """Return the keys of the namespace's images."""
        pages = self.storage().get_paginator("list_objects_v2")
        prefix = f"{installation.PREFIX}/{self.namespace.name}/"
        found = pages.paginate(Bucket=installation.BUCKET, Prefix=prefix)
        return {item["Key"] for page in found for item in page.get("Contents", ())}

    def stored(self) -> dict[str, bytes]:
        """Return the namespace's images by key."""
        client = self.storage()
        return {
            key: client.get_object(Bucket=installation.BUCKET, Key=key)["Body"].read() for key in self.stored_keys()
        }

    def processes(self) -> list[str]:
        """Return the processes of Pods that are not there any more."""
        folder = self.site.cluster.folder / "pods"
        alive = {str(folder / pod["metadata"]["uid"]) for pod in self.pods()}
        found = []
        for process in psutil.process_iter(("pid", "cmdline")):
            with contextlib.suppress(psutil.Error):
                home = str(Path(process.environ().get("KUBECONFIG", "")).parent)
                ours = process.environ().get("POD_NAMESPACE") == self.namespace.name
                if ours and home.startswith(str(folder)) and home not in alive:
                    found.append(f"process {process.pid} {' '.join(process.info['cmdline'])}")
        return found


def ended(job: Object) -> bool:
    """Return whether a GenerationJob has reached a terminal phase."""
    return job.get("status", {}).get("phase") in TERMINAL


def _ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )


def model_manifest(name: str, environment: Mapping[str, str], *, place: int = 0, workers: int = 1) -> Object:
    """Return a DiffusionModel whose workers run the stand-in engine.

    Args:
        name: Its name.
        environment: More environment of its workers.
        place: The first, 0, is the default model of its namespace; a step of another takes so many times longer.
        workers: How many workers it always has.
    """
    path = f"{FOLDER / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"
    return {
        "apiVersion": API_VERSION,
        "kind": "DiffusionModel",
        "metadata": {"name": name, "annotations": {"kubediffusion.io/is-default": str(place == 0).lower()}},
        "spec": {
            "source": {"path": f"{SCHEME}{STEP_SECONDS * (1 + place)}"},
            "workers": {
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                "minReplicas": workers,
                "maxReplicas": workers,
                "maxBatchSize": 4,
                "terminationGracePeriodSeconds": 30,
                "env": [{"name": key, "value": value} for key, value in {"PATH": path, **environment}.items()],
            },
        },
    }
