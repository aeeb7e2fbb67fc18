"""An API server process against a real cluster, and somebody who plays operator and worker behind it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from PIL import Image

from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace, wait_for
from kubediffusion.resources import meta
from kubediffusion.resources.image_keys import image_key, input_key, preview_key

MODEL = "tiny"
WORKER = "tiny-worker"
COMMAND = Path(sys.executable).with_name("kubediffusion-api")


def png(color: str = "red", size: int = 16) -> bytes:
    """Make a small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), color).save(file, "PNG")
    return file.getvalue()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Api:
    """The API as a process of its own, under the rights of its service account.

    Attributes:
        url: Where it serves.
        http: A client of it.
    """

    def __init__(self, namespace: Namespace, folder: Path, environment: Mapping[str, str]) -> None:
        self.namespace = namespace
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        self.log = folder / f"api-{self.port}.log"
        plane = namespace.cluster.control_plane
        identity = plane.kubeconfig(f"system:serviceaccount:{namespace.name}:{installation.API}")
        self._environment = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(identity),
            "KUBEDIFFUSION_NAMESPACE": namespace.name,
            "KUBEDIFFUSION_ALLOW_UNAUTHENTICATED": "true",
            "KUBEDIFFUSION_BIND_ADDRESS": "127.0.0.1",
            "KUBEDIFFUSION_PORT": str(self.port),
            "KUBEDIFFUSION_S3_BUCKET": installation.BUCKET,
            "KUBEDIFFUSION_S3_PREFIX": installation.PREFIX,
            **namespace.cluster.store.settings,
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Start it, whether it gets ready or not."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([COMMAND], env=self._environment, stdout=log, stderr=log)

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.launch()
        wait_for("the API to be ready", self.ready, 60)

    def ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/readyz").status_code == 200
        return False

    def stop(self) -> int:
        """End it by SIGTERM, and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)

    def wait(self) -> int:
        """Wait for it to end by itself, and return its exit code."""
        assert self._process is not None
        return self._process.wait(60)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.http.close()
        if self._process is not None and self._process.poll() is None:
            self.kill()
        # Whatever the tests asked for: each line is JSON, and no library warned of how it is used.
        log = self.log.read_text() if self.log.exists() else ""
        assert [line for line in log.split("\n") if line and not line.startswith("{")] == []
        assert [line for line in log.split("\n") if "py.warnings" in line] == []

    def generate(self, prompt: str = "a cat", **fields: Any) -> str:
        """Submit a task and return its id."""
        answer = self.http.post("/generate", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        task_id: str = answer.json()["task_id"]
        return task_id

    def result(self, task_id: str, **query: str) -> dict[str, Any]:
        answer = self.http.get(f"/results/{task_id}", params=query)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def wait_status(self, task_id: str, status: str) -> dict[str, Any]:
        """Poll until a task has a status."""

        def reached() -> dict[str, Any] | None:
            body = self.result(task_id)
            return body if body["status"] == status else None

        return wait_for(f"task {task_id} {status}", reached)

    def wait_phase(self, name: str, phase: str) -> None:
        """Poll the detailed view until a job is in a phase."""
        wait_for(f"job {name} {phase}", lambda: self.http.get(f"/v1/jobs/{name}").json()["phase"] == phase)

    def metric(self, name: str) -> float:
        """Read a metric, summed over its labels."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


class Stage:
    """Operator and worker, played by hand through the API server: it holds them to the same rules."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self.namespace = namespace
        cluster = namespace.cluster
        self._http = httpx.Client(
            base_url=cluster.control_plane.url, verify=_identity(cluster, folder), timeout=30, trust_env=False
        )
        self._s3 = cluster.store.client()

    def close(self) -> None:
        self._http.close()
        self._s3.close()

    def model(self, name: str = MODEL, *, default: bool = True, **spec: Any) -> None:
        """Apply a DiffusionModel."""
        annotations = {meta.DEFAULT_MODEL_ANNOTATION: "true"} if default else {}
        self.namespace.apply(
            {
                "apiVersion": meta.API_VERSION,
                "kind": "DiffusionModel",
                "metadata": {"name": name, "annotations": annotations},
                "spec": {"source": {"path": "/models/tiny"}, **spec},
            }
        )

    def available(self, status: str, reason: str, message: str = "", model: str = MODEL) -> None:
        """Say whether a model can be used, as the operator does."""
        condition = told("Available", status, reason, message)
        self._patch(f"diffusionmodels/{model}/status", {"status": {"conditions": [condition]}})

    def knows(self, model: str, **pipeline: Any) -> None:
        """Say what a worker has told of a model's pipeline, as the operator does."""
        self._patch(f"diffusionmodels/{model}/status", {"status": {"observedGeneration": 1, "pipeline": pipeline}})

    def job(self, name: str) -> dict[str, Any]:
        answer = self._http.get(self._path(f"generationjobs/{name}"))
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    def jobs(self) -> list[dict[str, Any]]:
        """List the jobs of the namespace."""
        answer = self._http.get(self._path("generationjobs"))
        answer.raise_for_status()
        jobs: list[dict[str, Any]] = answer.json()["items"]
        return jobs

    def create(self, name: str, spec: Mapping[str, Any]) -> None:
        """Create a job of this name, as `kubectl apply` does."""
        body = {
            "apiVersion": meta.API_VERSION,
            "kind": "GenerationJob",
            "metadata": {"name": name},
            "spec": dict(spec),
        }
        self._http.post(self._path("generationjobs"), json=body).raise_for_status()

    def delete(self, name: str) -> None:
        """Delete a job, as `kubectl delete` does."""
        self._http.delete(self._path(f"generationjobs/{name}")).raise_for_status()

    def bind(self, name: str, worker: str = WORKER) -> None:
        """Bind a job to a worker, as the operator does."""
        scheduled = {"type": "Scheduled", "status": "True", "reason": "Bound", "lastTransitionTime": now()}
        self._status(name, phase="Scheduled", worker=worker, attempt=1, conditions=[scheduled])

    def waits(self, name: str, reason: str, message: str) -> None:
        """Say why a job waits, as the operator does."""
        self._status(name, phase="Pending", conditions=[told("Scheduled", "False", reason, message)])

    def cancelled(self, name: str) -> None:
        self._status(name, phase="Cancelled", completionTime=now())

    def run(self, name: str, step: int = 1, total: int = 25) -> None:
        """Report that a job runs, as its worker does."""
        progress = {"step": step, "total": total, "summary": f"{step}/{total}"}
        self._status(name, as_worker=True, phase="Running", progress=progress)

    def fail(self, name: str, code: str, message: str) -> None:
        error = {"code": code, "message": message}
        self._status(name, as_worker=True, phase="Failed", error=error, completionTime=now())

    def succeed(self, name: str, *images: bytes, warnings: tuple[str, ...] = (), **ran: Any) -> None:
        """Store images and report them, as the worker does; ``ran`` is what the recipe has beside the usual."""
        uid = self.job(name)["metadata"]["uid"]
        images_listed = []
        for index, data in enumerate(images):
            key = image_key(installation.PREFIX, self.namespace.name, uid, index)
            self._s3.put_object(Bucket=installation.BUCKET, Key=key, Body=data, ContentType="image/png")
            images_listed.append(listed(index, f"s3://{installation.BUCKET}/{key}", data))
        recipe = {"model": MODEL, "numInferenceSteps": 25, "guidanceScale": 9.0, "seed": 7, "numImages": len(images)}
        self._status(
            name,
            as_worker=True,
            phase="Succeeded",
            images=images_listed,
            parameters=recipe | ran,
            warnings=list(warnings),
            completionTime=now(),
        )

    def complete(self, name: str, *images: bytes, warnings: tuple[str, ...] = ()) -> None:
        """Take a job through its whole life."""
        self.bind(name)
        self.run(name)
        self.succeed(name, *images, warnings=warnings)

    def claim(self, name: str, *images: dict[str, Any]) -> None:
        """Report images without storing any."""
        self._status(name, as_worker=True, phase="Succeeded", images=list(images), completionTime=now())

    def preview(self, name: str, data: bytes, attempt: int = 1, index: int = 0) -> None:
        """Store a preview, as the worker does that is asked for it."""
        key = preview_key(installation.PREFIX, self.namespace.name, self.job(name)["metadata"]["uid"])
        about = {"attempt": str(attempt), "index": str(index)}
        self._s3.put_object(Bucket=installation.BUCKET, Key=key, Body=data, Metadata=about)

    def input(self, name: str, role: str) -> bytes:
        """Read an image that a job is made of, as the worker does."""
        (given,) = [each["id"] for each in self.job(name)["spec"]["inputs"] if each["role"] == role]
        key = input_key(installation.PREFIX, self.namespace.name, given)
        data: bytes = self._s3.get_object(Bucket=installation.BUCKET, Key=key)["Body"].read()
        return data

    def overwrite(self, uri: str, data: bytes) -> None:
        """Replace the bytes of a stored image."""
        bucket, key = uri.removeprefix("s3://").split("/", 1)
        self._s3.put_object(Bucket=bucket, Key=key, Body=data)

    def remove(self, uri: str) -> None:
        """Delete a stored image."""
        bucket, key = uri.removeprefix("s3://").split("/", 1)
        self._s3.delete_object(Bucket=bucket, Key=key)

    def _status(self, name: str, *, as_worker: bool = False, **status: Any) -> None:
        headers = {}
        if as_worker:
            # What a Pod-bound token says of its bearer.
            headers = {
                "Impersonate-User": f"system:serviceaccount:{self.namespace.name}:{installation.WORKER}",
                "Impersonate-Extra-authentication.kubernetes.io%2fpod-name": WORKER,
            }
        self._patch(f"generationjobs/{name}/status", {"status": status}, headers)

    def _patch(self, what: str, patch: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/merge-patch+json", **(headers or {})}
        answer = self._http.patch(self._path(what), json=patch, headers=headers)
        assert answer.status_code == 200, answer.text

    def _path(self, what: str) -> str:
        return f"/apis/{meta.API_VERSION}/namespaces/{self.namespace.name}/{what}"


def listed(index: int, uri: str, data: bytes) -> dict[str, Any]:
    """Describe an image as a job's status does."""
    digest = hashlib.sha256(data).hexdigest()
    return {"index": index, "uri": uri, "sha256": digest, "bytes": len(data), "width": 16, "height": 16, "seed": index}


def told(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    """Return a condition of a status."""
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())


def _identity(cluster: LocalCluster, folder: Path) -> ssl.SSLContext:
    config = yaml.safe_load(cluster.admin.read_text())
    user = config["users"][0]["user"]
    files = []
    for part in ("client-certificate-data", "client-key-data"):
        file = folder / f"{part}.pem"
        file.write_bytes(base64.b64decode(user[part]))
        files.append(str(file))
    context = ssl.create_default_context(cafile=str(cluster.control_plane.authority))
    context.load_cert_chain(*files)
    return context


@contextlib.contextmanager
def apis(namespace: Namespace, folder: Path) -> Iterator[Callable[..., Api]]:
    """Yield a function that starts an API with settings of its own; all are stopped on exit."""
    started: list[Api] = []

    def start(**environment: str) -> Api:
        api = Api(namespace, folder, {f"KUBEDIFFUSION_{name}": value for name, value in environment.items()})
        started.append(api)
        api.start()
        return api

    try:
        yield start
    finally:
        for api in started:
            api.close()


StartApi = Callable[..., Api]


@dataclass(frozen=True)
class Site:
    """A namespace that is served.

    Attributes:
        stage: Whoever plays operator and worker; there is one model, and it is the default.
        start: Starts an API; keyword arguments are settings.
    """

    stage: Stage
    start: StartApi


@contextlib.contextmanager
def serving(namespace: Namespace, folder: Path) -> Iterator[Site]:
    namespace.install()
    stage = Stage(namespace, folder)
    stage.model()
    try:
        with apis(namespace, folder) as start:
            yield Site(stage, start)
    finally:
        stage.close()


def problems(answer: httpx.Response) -> dict[str, str]:
    """Return the fields that a 422 names, and what it says of each."""
    assert answer.status_code == 422, answer.text
    return {".".join(map(str, problem["loc"])): problem["msg"] for problem in answer.json()["detail"]}


def generate(api: Api, **body: object) -> httpx.Response:
    """Return what `POST /generate` answers."""
    return api.http.post("/generate", json={"prompt": "a cat", **body})
