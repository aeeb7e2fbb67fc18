"""Workers as real Pods, and the operator's side played by hand: what these tests share."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import sys
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubediffusion.local import installation
from kubediffusion.local.testing import Namespace, eventually, json_lines
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.schema import format_time
from kubediffusion.resources.testing import present
from kubediffusion.resources.transitions import TERMINAL

MODEL = "tiny"
LONG = 900
"""Steps of a job that takes several seconds on the tiny pipeline; its schedulers go no further than 1000."""
PORT = 8080

STANDIN = Path(__file__).parent / "standin_worker.py"

START_SECONDS = 150.0
"""For a worker to become ready: importing torch takes seconds of two cores that do much else."""


def start(
    namespace: Namespace,
    name: str,
    model: Path | None = None,
    *,
    max_batch_size: int = 4,
    source: dict[str, Any] | None = None,
    components: Sequence[dict[str, Any]] = (),
    command: list[str] | None = None,
    account: str = installation.WORKER,
    **environment: str,
) -> None:
    """Start a worker's Pod as the operator does, without waiting for it.

    Args:
        namespace: Where.
        name: The Pod's name.
        model: Folder of the pipeline.
        max_batch_size: Images that run together.
        source: The model's source, if it is not a folder.
        components: What of it comes from elsewhere.
        command: What to run instead of the worker's own command.
        account: Its service account.
        environment: More settings.
    """
    spec = {
        "source": source or {"path": str(model)},
        "components": list(components),
        "workers": {"maxBatchSize": max_batch_size},
    }
    settings = {
        "KUBEDIFFUSION_MODEL": MODEL,
        "KUBEDIFFUSION_MODEL_SPEC": json.dumps(spec),
        "KUBEDIFFUSION_PORT": str(PORT),
        "KUBEDIFFUSION_TERMINATION_LOG": "/dev/termination-log",
        # Workers of these tests share two cores with the control plane.
        "KUBEDIFFUSION_TORCH_THREADS": "1",
        **environment,
    }
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_IP": "status.podIP",
        "KUBEDIFFUSION_BIND_ADDRESS": "status.podIP",
    }
    container = {
        "name": "worker",
        "image": "none",
        "command": command or ["kubediffusion-worker"],
        "env": [
            *({"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in fields.items()),
            *({"name": key, "value": value} for key, value in settings.items()),
        ],
        "envFrom": [{"secretRef": {"name": installation.S3_SECRET}}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 1},
    }
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "serviceAccountName": account,
                "terminationGracePeriodSeconds": 60,
                "containers": [container],
            },
        }
    )


def start_obedient(namespace: Namespace, name: str) -> str:
    """Start a worker which takes two images at once and may hold one MiB of them."""
    start(
        namespace,
        name,
        max_batch_size=2,
        source={"path": "/"},
        command=[sys.executable, str(STANDIN)],
        KUBEDIFFUSION_UPLOAD_BUFFER_MIB="1",
    )
    namespace.wait_ready(name, START_SECONDS)
    return name


@dataclass(frozen=True)
class Bench:
    """A namespace in which workers run and jobs are bound by hand.

    Attributes:
        namespace: Where.
        client: An administrator, who may do what the operator may.
        model: Folder of the pipeline.
    """

    namespace: Namespace
    client: KubernetesClient
    model: Path

    def worker(self, name: str, **options: Any) -> str:
        """Start a worker's Pod and wait until it is ready."""
        start(self.namespace, name, self.model, **options)
        self.namespace.wait_ready(name, START_SECONDS)
        return name

    async def submit(self, name: str, **spec: Any) -> GenerationJob:
        """Create a job."""
        body = {
            "apiVersion": meta.API_VERSION,
            "kind": "GenerationJob",
            "metadata": {"name": name},
            "spec": {"prompt": "a cat", "model": MODEL, **spec},
        }
        return await self.client.generation_jobs.create(self.namespace.name, body)

    async def bind(self, job: GenerationJob, worker: str, **parameters: Any) -> GenerationJob:
        """Bind a job as the operator does: one write, with the recipe resolved and the attempt counted."""
        spec = job.spec
        recipe = {
            "model": MODEL,
            "numInferenceSteps": spec.num_inference_steps or 2,
            "guidanceScale": 7.5,
            "seed": spec.seed or 0,
            "numImages": spec.num_images or 1,
            "deterministic": bool(spec.deterministic),
            **({"negativePrompt": spec.negative_prompt} if spec.negative_prompt is not None else {}),
            **({"scheduler": str(spec.scheduler)} if spec.scheduler else {}),
            **({"acceleration": spec.acceleration.to_wire()} if spec.acceleration else {}),
            **parameters,
        }
        status = {
            "phase": "Scheduled",
            "worker": worker,
            "attempt": job.status.attempt + 1,
            "parameters": recipe,
            "queuedAt": format_time(dt.datetime.now(dt.UTC)),
        }
        return await self.client.generation_jobs.patch(
            self.namespace.name, job.name, {"status": status}, subresource="status"
        )

    async def run(self, name: str, worker: str, **spec: Any) -> GenerationJob:
        """Create a job and bind it."""
        return await self.bind(await self.submit(name, **spec), worker)

    async def get(self, name: str) -> GenerationJob:
        """Read a job."""
        return await self.client.generation_jobs.get(self.namespace.name, name)

    async def reached(self, name: str, *phases: Phase, seconds: float = 60.0) -> GenerationJob:
        """Wait until a job is in one of these phases; in a terminal one by default."""
        wanted = phases or tuple(TERMINAL)

        async def there() -> GenerationJob | None:
            job = await self.get(name)
            if job.status.phase in wanted:
                return job
            assert job.status.phase not in TERMINAL, job.status
            return None

        return await eventually(f"job {name} {' or '.join(wanted)}", there, seconds)

    async def patch(self, name: str, patch: dict[str, Any], subresource: str = "") -> GenerationJob:
        """Change a job as a user or, in its status, as the operator does."""
        return await self.client.generation_jobs.patch(self.namespace.name, name, patch, subresource=subresource)

    def metric(self, worker: str, name: str) -> float:
        """Read a metric of a worker; 0 while it has no value."""
        address = self.namespace.pod_status(worker)["podIP"]
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://{address}:{PORT}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def log(self, worker: str) -> list[dict[str, Any]]:
        """Return the lines of a worker's log."""
        return json_lines(self.namespace.kubectl("logs", worker))

    def stored(self, uri: str) -> bytes:
        """Read an object with the store's own key."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        with closing(self.namespace.cluster.store.client()) as client:
            return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def check_images(self, job: GenerationJob) -> None:
        """Check that storage holds exactly the bytes that status names."""
        assert len(job.status.images) == present(job.status.parameters).num_images
        for image in job.status.images:
            data = self.stored(image.uri)
            assert (len(data), hashlib.sha256(data).hexdigest()) == (image.bytes, image.sha256)
