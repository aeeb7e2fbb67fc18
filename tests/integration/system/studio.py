"""A studio: operator, API and models in a namespace, and the words that the system's tests are told in."""

from __future__ import annotations

import hashlib
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx

from kubediffusion.local import installation
from kubediffusion.local.testing import Namespace, eventually, is_true, wait_for
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.transitions import TERMINAL

MODEL = "tiny"
"""A real pipeline, and the default model."""
STANDIN = "stand-in"
"""A model whose engine waits at every step and makes noise; its workers need no torch, and start in a moment."""
STANDIN_STEP_SECONDS = 0.02
JOB_SECONDS = 180.0
"""For a job to end, a worker's start with all its imports included, on two cores that others use too."""

STEPS = 2
LONG = {"numInferenceSteps": 150, "numImages": 4, "deterministic": True}
"""A job that computes long enough to be disturbed: image by image."""


class Studio:
    """KubeDiffusion in one namespace.

    Args:
        namespace: The namespace, with everything installed.
        client: A client with the rights of an administrator.
        model: The model of its jobs; they do not name `MODEL`, the default.
    """

    def __init__(self, namespace: Namespace, client: KubernetesClient, model: str = MODEL) -> None:
        self.namespace = namespace
        self.model = model
        self._client = client
        self._s3 = namespace.cluster.store.client()
        self._named = {} if model == MODEL else {"model": model}
        self.jobs = client.generation_jobs
        self.models = client.diffusion_models

    @property
    def name(self) -> str:
        """Name of the namespace."""
        return self.namespace.name

    @property
    def url(self) -> str:
        """Where the API answers."""
        pod = self.pod("kubediffusion-api")
        return f"http://{self.namespace.pod_status(pod)['podIP']}:{installation.API_PORT}"

    def http(self) -> httpx.AsyncClient:
        """Return an HTTP client of the API."""
        return httpx.AsyncClient(base_url=self.url, timeout=30, trust_env=False)

    # Jobs.

    async def submit(self, name: str, **spec: Any) -> GenerationJob:
        """Create a job, as ``kubectl apply`` does."""
        body = {
            "apiVersion": meta.API_VERSION,
            "kind": "GenerationJob",
            "metadata": {"name": name},
            "spec": {"prompt": "a fox in the snow", "numInferenceSteps": STEPS, **self._named, **spec},
        }
        return await self.jobs.create(self.name, body)

    async def job(self, name: str) -> GenerationJob:
        """Read a job."""
        return await self.jobs.get(self.name, name)

    async def change(self, name: str, **spec: Any) -> GenerationJob:
        """Change fields of a job's spec."""
        return await self.jobs.patch(self.name, name, {"spec": spec})

    async def until(
        self, name: str, what: str, condition: Callable[[GenerationJob], object], seconds: float = JOB_SECONDS
    ) -> GenerationJob:
        """Wait until something holds of a job, and return the job."""

        async def holds() -> GenerationJob | None:
            job = await self.job(name)
            return job if condition(job) else None

        return await eventually(f"{name}: {what}", holds, seconds)

    async def phase(self, name: str, *phases: Phase) -> GenerationJob:
        """Wait until a job is in one of the phases; one that ended otherwise fails the test at once."""

        def reached(job: GenerationJob) -> bool:
            ended_otherwise = job.status.phase in TERMINAL and job.status.phase not in phases
            assert not ended_otherwise, f"{name} is {job.status.phase}, not {phases}: {job.status.error}"
            return job.status.phase in phases

        return await self.until(name, " or ".join(phases), reached)

    async def first_running(self, names: Sequence[str]) -> str:
        """Wait until one of the jobs runs, and return its name."""

        async def running() -> str | None:
            for name in names:
                if (await self.job(name)).status.phase == Phase.RUNNING:
                    return name
            return None

        return await eventually(f"one of {', '.join(names)} runs", running, JOB_SECONDS)

    async def finished(self, name: str) -> GenerationJob:
        """Wait until a job has ended, however."""
        return await self.until(name, "finished", lambda job: job.status.phase in TERMINAL)

    async def clear(self) -> None:
        """Delete all jobs, in one request, and wait until they are gone."""
        await self._client.request("DELETE", self.jobs.path(self.name))

        async def gone() -> bool:
            return not (await self.jobs.list(self.name))[0]

        await eventually("no job is left", gone)

    # Images.

    def stored(self, uri: str) -> bytes:
        """Read an image from storage."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        body: bytes = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def store(self, key: str, data: bytes) -> None:
        """Put an object into the images' bucket, as somebody else may who can write there."""
        self._s3.put_object(Bucket=installation.BUCKET, Key=key, Body=data)

    def stored_keys(self, job: GenerationJob | None = None) -> list[str]:
        """Return the keys of all that storage has of a job, or of the namespace."""
        prefix = f"{installation.PREFIX}/{self.name}/{job.uid + '/' if job else ''}"
        found = self._s3.list_objects_v2(Bucket=installation.BUCKET, Prefix=prefix)
        return [item["Key"] for item in found.get("Contents", [])]

    def assert_images_are_true(self, job: GenerationJob) -> None:
        """Check that a job succeeded, and that every image in storage is the one that its status names."""
        assert job.status.phase is Phase.SUCCEEDED, job.status.error
        assert len(job.status.images) == (job.spec.num_images or 1)
        for image in job.status.images:
            data = self.stored(image.uri)
            assert data.startswith(b"\x89PNG")
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (image.sha256, image.bytes)

    # Parts.

    def pod(self, prefix: str) -> str:
        """Wait for the one ready Pod whose name begins so, and return its name."""
        return self.ready_pods(prefix, 1)[0]

    def ready_pods(self, prefix: str, count: int, seconds: float = JOB_SECONDS) -> list[str]:
        """Wait until exactly so many Pods are ready whose names begin so, and return their names."""

        def ready() -> list[str] | None:
            pods = [pod for pod in self.namespace.list("pods") if pod["metadata"]["name"].startswith(prefix)]
            names = [
                pod["metadata"]["name"]
                for pod in pods
                if is_true(pod["status"], "Ready") and "deletionTimestamp" not in pod["metadata"]
            ]
            return names if len(names) == count else None

        return wait_for(f"{count} ready Pods {prefix}…", ready, seconds)

    def kill(self, pod: str) -> None:
        """End a Pod's process as ``kill -9`` does."""
        self.namespace.signal(pod, signal.SIGKILL)

    async def model_says(self, name: str, status: str, seconds: float = JOB_SECONDS) -> Any:
        """Wait until a model's Available condition has this status, and return the condition."""

        async def says() -> Any:
            model = await self.models.get(self.name, name)
            found = [c for c in model.status.conditions if c.type == "Available" and c.status == status]
            return found[0] if found else None

        return await eventually(f"model {name} Available={status}", says, seconds)


class Witness:
    """Watches every job of a namespace and keeps what it saw: the record that invariants are checked against."""

    def __init__(self, studio: Studio) -> None:
        self.phases: dict[str, list[Phase]] = defaultdict(list)
        self.attempts: dict[str, list[int]] = defaultdict(list)
        self.latest: dict[str, GenerationJob] = {}
        self.reflector = Reflector(studio.jobs, studio.name, self._saw)

    def _saw(self, job: GenerationJob, gone: bool) -> None:
        if gone:
            return
        if not self.phases[job.uid] or self.phases[job.uid][-1] != job.status.phase:
            self.phases[job.uid].append(job.status.phase)
        self.attempts[job.uid].append(job.status.attempt)
        self.latest[job.uid] = job

    def assert_each_ended_once(self, uids: Iterable[str]) -> None:
        """Check that each job reached one terminal phase, never left it, and that its attempts only grew."""
        for uid in uids:
            terminal = [phase for phase in self.phases[uid] if phase in TERMINAL]
            assert len(terminal) == 1, f"{self.latest[uid].name} went through {self.phases[uid]}"
            assert self.phases[uid][-1] in TERMINAL
            assert self.attempts[uid] == sorted(self.attempts[uid])


def tiny_model(folder: Path, **workers: Any) -> dict[str, Any]:
    """Return the manifest of the default model."""
    # Tests share two cores: one thread a worker.
    environment = {"KUBEDIFFUSION_TORCH_THREADS": "1"}
    return _model(MODEL, str(folder), environment, default=True, **workers)


def family_model(name: str, folder: Path) -> dict[str, Any]:
    """Return the manifest of a model that is loaded when the first job asks for it, and goes soon after."""
    environment = {"KUBEDIFFUSION_TORCH_THREADS": "1"}
    return _model(name, str(folder), environment, default=False, minReplicas=0, idleSeconds=1)


def standin_model(*, default: bool = False, **workers: Any) -> dict[str, Any]:
    """Return the manifest of a model that the stand-in serves."""
    bin_folder = Path(__file__).parent / "bin"
    environment = {
        "PATH": f"{bin_folder}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "STEP_SECONDS": str(STANDIN_STEP_SECONDS),
    }
    return _model(STANDIN, "/", environment, default=default, **workers)


def _model(name: str, path: str, environment: dict[str, str], *, default: bool, **workers: Any) -> dict[str, Any]:
    return {
        "apiVersion": meta.API_VERSION,
        "kind": "DiffusionModel",
        "metadata": {"name": name, "annotations": {meta.DEFAULT_MODEL_ANNOTATION: "true"} if default else {}},
        "spec": {
            "source": {"path": path},
            "workers": {
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                "minReplicas": 1,
                "maxReplicas": 1,
                "maxBatchSize": 4,
                "terminationGracePeriodSeconds": 30,
                "env": [{"name": name, "value": value} for name, value in environment.items()],
                **workers,
            },
        },
    }
