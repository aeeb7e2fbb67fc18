"""The demo's path through models of the families that most people use: a prompt over HTTP, a worker, an image."""

from __future__ import annotations

import asyncio
import base64

import httpx

from census.registry import folder
from integration.system.studio import JOB_SECONDS, LONG, Studio, family_model
from kubediffusion.local.testing import eventually
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import present

FAMILIES = {
    "stable-diffusion-xl": ("StableDiffusionXLPipeline", 50),
    "flux-dev": ("FluxPipeline", 28),
    "z-image-turbo": ("ZImagePipeline", 9),
}
"""Tiny models by the name of their row, the diffusers class of each, and the steps of a job that names none."""


async def test_a_prompt_becomes_an_image_of_each_family(studio: Studio) -> None:
    for name in FAMILIES:
        studio.namespace.apply(family_model(name, folder(name)))
    try:
        async with studio.http() as http:
            await asyncio.gather(*(_drawn(studio, http, name) for name in FAMILIES))
    finally:
        studio.namespace.kubectl("delete", "diffusionmodels", *FAMILIES)


async def _drawn(studio: Studio, http: httpx.AsyncClient, name: str) -> None:
    wanted = {"prompt": "a cat", "model": name, "width": 64, "height": 64, "seed": 7}

    async def accepted() -> str | None:
        answer = await http.post("/generate", json=wanted)
        # The model has just been applied: this server's watch may not know it yet.
        return str(answer.json()["task_id"]) if answer.status_code == 202 else None

    task = await eventually(f"a task of {name}", accepted)

    async def completed() -> str | None:
        result = (await http.get(f"/results/{task}")).json()
        assert result["status"] != "failed", result
        return str(result["image_base64"]) if result["status"] == "completed" else None

    image = base64.b64decode(await eventually(f"an image of {name}", completed, JOB_SECONDS))
    job = await studio.job(task)
    studio.assert_images_are_true(job)
    assert studio.stored(job.status.images[0].uri) == image
    parameters, (pipeline, steps) = present(job.status.parameters), FAMILIES[name]
    assert (parameters.pipeline, parameters.engine) == (pipeline, "continuous")
    assert parameters.num_inference_steps == steps


async def test_a_preview_goes_from_the_worker_to_whoever_looks(studio: Studio) -> None:
    job = await studio.submit("looked-at", **LONG)
    async with studio.http() as http:

        async def shown() -> httpx.Response | None:
            answer = await http.get(f"/v1/jobs/{job.name}/preview")
            return answer if answer.status_code == 200 else None

        assert (await eventually("a preview", shown, JOB_SECONDS)).content.startswith(b"\x89PNG")
    done = await studio.phase(job.name, Phase.SUCCEEDED)
    studio.assert_images_are_true(done)

    async def removed() -> bool:
        return not [key for key in studio.stored_keys(done) if key.endswith("preview.png")]

    await eventually("the preview to be removed", removed)
