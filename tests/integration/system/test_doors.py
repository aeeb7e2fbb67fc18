"""A prompt goes in by each door, and a PNG comes out by each."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sys
from asyncio.subprocess import PIPE
from typing import Any

import yaml

from integration.system.studio import STEPS, Studio
from kubediffusion.local.layout import CHART
from kubediffusion.local.testing import eventually
from kubediffusion.resources import meta
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import present


async def test_http_in_http_out(studio: Studio) -> None:
    request = {"prompt": "A photo of an astronaut riding a horse on the moon", "num_inference_steps": STEPS}
    async with studio.http() as http:
        accepted = await http.post("/generate", json=request)
        assert accepted.status_code == 202
        task = accepted.json()["task_id"]

        async def completed() -> dict[str, Any] | None:
            answer: dict[str, Any] = (await http.get(f"/results/{task}")).json()
            assert answer["status"] != "failed", answer
            return answer if answer["status"] == "completed" else None

        answer = await eventually("the image", completed)
    job = await studio.job(task)
    assert hashlib.sha256(base64.b64decode(answer["image_base64"])).hexdigest() == job.status.images[0].sha256
    studio.assert_images_are_true(job)


async def test_kubectl_in_kubectl_out_and_readable_over_http(studio: Studio) -> None:
    manifest = {
        "apiVersion": meta.API_VERSION,
        "kind": "GenerationJob",
        "metadata": {"name": "from-kubectl"},
        "spec": {"prompt": "a fox in the snow"},
    }
    studio.namespace.kubectl("apply", "--filename=-", stdin=yaml.safe_dump(manifest))
    studio.namespace.kubectl("wait", "--for=condition=Complete", "gj/from-kubectl", "--timeout=180s")
    header, row = studio.namespace.kubectl("get", "gj", "from-kubectl").splitlines()
    assert header.split() == ["NAME", "MODEL", "PHASE", "PROGRESS", "WORKER", "AGE"]
    assert row.split()[:4] == ["from-kubectl", "tiny", "Succeeded", "50/50"]
    studio.assert_images_are_true(await studio.job("from-kubectl"))
    async with studio.http() as http:
        answer = (await http.get("/results/from-kubectl")).json()
    assert (answer["status"], answer["prompt"]) == ("completed", "a fox in the snow")


async def test_a_recipe_makes_the_image_again(studio: Studio) -> None:
    """As ``kubectl`` applies what HTTP hands out, to the byte: the seed was drawn, the defaults were the pipeline's."""
    await studio.submit("original", deterministic=True, width=64, height=64)
    job = await studio.phase("original", Phase.SUCCEEDED)
    async with studio.http() as http:
        recipe = await http.get("/v1/jobs/original/recipe")
        as_json = await http.get("/v1/jobs/original/recipe", headers={"Accept": "application/json"})
    assert recipe.headers["Content-Type"].startswith("application/yaml")
    manifest = yaml.safe_load(recipe.text)
    assert manifest == as_json.json()
    assert manifest["spec"]["seed"] == present(job.status.parameters).seed
    studio.namespace.kubectl("apply", "--filename=-", stdin=recipe.text)
    again = await studio.phase(manifest["metadata"]["name"], Phase.SUCCEEDED)
    assert again.uid != job.uid
    assert [image.sha256 for image in again.status.images] == [image.sha256 for image in job.status.images]


async def test_the_chart_s_own_test_checks_an_image_and_leaves_nothing(studio: Studio) -> None:
    before = studio.stored_keys()
    environment = {"URL": studio.url, "PROMPT": "a fox in the snow", "STEPS": str(STEPS), "TIMEOUT_SECONDS": "120"}
    program = CHART / "files" / "tests" / "generate.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), env=environment, stdout=PIPE, stderr=PIPE
    )
    said, problem = await process.communicate()
    assert process.returncode == 0, problem.decode()
    assert said.decode().rstrip().endswith("as the job says")
    jobs, _ = await studio.jobs.list(studio.name)
    assert not jobs
    assert studio.stored_keys() == before


async def test_the_recipe_is_complete(studio: Studio) -> None:
    await studio.submit("recipe", numImages=2, width=64, height=64, scheduler="DDIMScheduler", guidanceScale=3.5)
    job = await studio.phase("recipe", Phase.SUCCEEDED)
    studio.assert_images_are_true(job)
    recipe = present(job.status.parameters)
    assert (recipe.num_inference_steps, recipe.guidance_scale, recipe.scheduler) == (STEPS, 3.5, "DDIMScheduler")
    assert [image.seed for image in job.status.images] == [recipe.seed, recipe.seed + 1]
    assert recipe.model_revision is not None
    assert {"torch", "diffusers"} <= present(recipe.versions).keys()
    until_completed = (present(job.status.completion_time) - present(job.status.queued_at)).total_seconds()
    assert 0 < present(present(job.status.timings).inference) < until_completed
    model = await studio.models.get(studio.name, "tiny")
    assert model.status.conditions[0].status == "True"


async def test_a_prompt_that_is_too_long_is_cut_and_the_job_says_so(studio: Studio) -> None:
    """The tiny text encoder takes 16 tokens, a letter each."""
    await studio.submit("long", prompt="a fox that is far too talkative for this encoder")
    job = await studio.phase("long", Phase.SUCCEEDED)
    assert any("cut" in warning or "truncated" in warning for warning in job.status.warnings), job.status.warnings
    events = studio.namespace.kubectl
    async with studio.http() as http:
        answer = await http.get("/results/long")
    assert any("warning" in name.lower() for name in answer.headers)

    async def told() -> bool:
        return "ParametersAdjusted" in events("describe", "gj", "long")

    await eventually("the event", told)
