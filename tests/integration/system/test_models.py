"""Models that come, go, cannot be loaded, and scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from integration.system.studio import STANDIN, Studio, standin_model, tiny_model
from kubediffusion.local.testing import eventually
from kubediffusion.resources import meta
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import present


async def test_a_model_that_cannot_be_loaded_says_why_and_recovers(
    open_studio: Callable[..., Studio], tiny_folder: Path, tmp_path: Path
) -> None:
    """It is corrected to a volume that holds one."""
    studio = open_studio(tiny_model(tmp_path / "nothing-here", minReplicas=0))
    await studio.submit("hopeless")
    job = await studio.phase("hopeless", Phase.FAILED)
    error = present(job.status.error)
    assert error.code == "ModelNotAvailable"
    assert error.message.startswith("Model not available: ")
    assert "nothing-here" in error.message
    condition = await studio.model_says("tiny", "False")
    assert condition.reason == "LoadFailed"
    async with studio.http() as http:

        async def refused() -> httpx.Response | None:
            answer = await http.post("/generate", json={"prompt": "x"})
            return answer if answer.status_code == 503 else None

        assert "nothing-here" in (await eventually("503", refused)).json()["detail"]
        assert (await http.get("/health")).json() == {"status": "ok", "model_status": "unavailable"}
        studio.namespace.claim("weights", tiny_folder.parent)
        volume = {"claimName": "weights", "path": tiny_folder.name}
        source = {"path": None, "persistentVolumeClaim": volume}
        await studio.models.patch(studio.name, "tiny", {"spec": {"source": source}})

        async def accepted() -> httpx.Response | None:
            answer = await http.post("/generate", json={"prompt": "x", "num_inference_steps": 1})
            return answer if answer.status_code == 202 else None

        task = (await eventually("202", accepted)).json()["task_id"]
    studio.assert_images_are_true(await studio.phase(task, Phase.SUCCEEDED))
    assert (await studio.model_says("tiny", "True")).reason == "Ready"


async def test_a_job_without_a_model_waits_a_moment_and_fails(open_studio: Callable[..., Studio]) -> None:
    model = standin_model(default=True, minReplicas=0)
    studio = open_studio(model, {"KUBEDIFFUSION_MODEL_GRACE_SECONDS": "3"})
    await studio.submit("lost", model="no-such-model")
    says = await studio.until("lost", "says why", lambda job: job.status.conditions)
    assert says.status.conditions[0].reason == "ModelNotFound"
    job = await studio.phase("lost", Phase.FAILED)
    error = present(job.status.error)
    assert error.code == "ModelNotFound"
    assert STANDIN in error.message
    studio.namespace.kubectl("delete", "diffusionmodel", STANDIN)
    async with studio.http() as http:

        async def refused() -> httpx.Response | None:
            answer = await http.post("/generate", json={"prompt": "x"})
            return answer if answer.status_code == 503 else None

        await eventually("503 without any model", refused)


async def test_workers_scale_from_zero_to_the_gpus_and_back(open_studio: Callable[..., Studio]) -> None:
    """Two GPUs: the third worker waits, and says why; all go when there is nothing to do."""
    gpu = {"limits": {"nvidia.com/gpu": 1}}
    studio = open_studio(
        standin_model(default=True, minReplicas=0, maxReplicas=3, idleSeconds=1, maxBatchSize=1, resources=gpu)
    )
    assert studio.namespace.list("pods", meta.WORKER_SELECTOR) == []
    names = [f"job-{number}" for number in range(8)]
    for name in names:
        await studio.submit(name, numInferenceSteps=60)
    waiting = await studio.until(
        names[-1], "says what it waits for", lambda job: job.status.conditions and job.status.phase is Phase.PENDING
    )
    assert waiting.status.conditions[0].reason in {"WorkerStarting", "WorkerUnschedulable", "WorkersBusy"}

    async def third_waits() -> list[str] | None:
        pods = studio.namespace.list("pods", meta.WORKER_SELECTOR)
        pending = [
            condition["message"]
            for pod in pods
            for condition in pod["status"].get("conditions", [])
            if condition["type"] == "PodScheduled" and condition["status"] == "False"
        ]
        return pending if len(pods) == 3 and pending else None

    assert "nvidia.com/gpu" in (await eventually("a third worker without a GPU", third_waits))[0]
    for name in names[3:]:
        await studio.change(name, cancel=True)
    for name in names[:3]:
        studio.assert_images_are_true(await studio.phase(name, Phase.SUCCEEDED))

    async def none_left() -> bool:
        return not studio.namespace.list("pods", meta.WORKER_SELECTOR)

    await eventually("scaled to zero", none_left)
    assert (await studio.model_says(STANDIN, "True")).reason == "ScaledToZero"


async def test_a_worker_that_cannot_start_is_what_the_job_waits_for(open_studio: Callable[..., Studio]) -> None:
    """A Secret that is missing keeps its container from starting; creating it is all that it takes."""
    model = standin_model(default=True, minReplicas=0)
    reference = {"secretKeyRef": {"name": "hub", "key": "token"}}
    model["spec"]["workers"]["env"].append({"name": "HF_TOKEN", "valueFrom": reference})
    studio = open_studio(model)
    await studio.submit("waits")
    says = "WorkerCannotStart"
    job = await studio.until("waits", "says why", lambda job: says in str(job.status.conditions))
    assert "hub" in job.status.conditions[0].message
    condition = await studio.model_says(STANDIN, "False")
    assert (condition.reason, condition.message) == (says, job.status.conditions[0].message)
    studio.namespace.kubectl("create", "secret", "generic", "hub", "--from-literal=token=hf_x")
    studio.assert_images_are_true(await studio.phase("waits", Phase.SUCCEEDED))
    assert (await studio.model_says(STANDIN, "True")).reason == "Ready"


async def test_a_worker_that_the_api_server_refuses_is_what_the_job_waits_for(
    open_studio: Callable[..., Studio],
) -> None:
    """A wrong toleration is found when the worker's Job is created; correcting the model is all that it takes."""
    studio = open_studio(standin_model(default=True, minReplicas=0, tolerations=[{"operator": "Maybe"}]))
    await studio.submit("waits")
    job = await studio.until("waits", "says why", lambda job: "Maybe" in str(job.status.conditions))
    assert job.status.conditions[0].reason == "WorkerRefused"
    await studio.models.patch(studio.name, STANDIN, {"spec": {"workers": {"tolerations": []}}})
    studio.assert_images_are_true(await studio.phase("waits", Phase.SUCCEEDED))


async def test_a_worker_that_may_not_read_its_jobs_says_so(open_studio: Callable[..., Studio]) -> None:
    """The service account exists and has no rights: the Pod starts, and nobody would ever run a job there."""
    studio = open_studio(standin_model(default=True, minReplicas=0, serviceAccountName="default"))
    await studio.submit("waits")
    says = 'cannot list resource "generationjobs"'
    await studio.until("waits", "says why", lambda job: says in str(job.status.conditions))
    condition = await studio.model_says(STANDIN, "False")
    assert condition.reason == "WorkerFailed"
    assert says in condition.message
    await studio.models.patch(studio.name, STANDIN, {"spec": {"workers": {"serviceAccountName": None}}})
    studio.assert_images_are_true(await studio.phase("waits", Phase.SUCCEEDED))
