"""The words of AUTOMATIC1111's web UI: samplers of a model, and the text of an image."""

from __future__ import annotations

from typing import Any

import pytest

from kubediffusion.api.doors.a1111.translate import Txt2ImgRequest, infotexts, job_request
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJobStatus, Image, Parameters, Scheduler
from kubediffusion.resources.pipeline_facts import PipelineFacts
from kubediffusion.resources.testing import job, model


def running(*schedulers: Scheduler) -> DiffusionModel:
    """Build a model whose workers have told which schedulers run it."""
    return model().with_pipeline(PipelineFacts(name="Pipeline", schedulers=schedulers))


@pytest.mark.parametrize(
    ("known", "scheduler"),
    [
        (None, Scheduler.EULER),
        (model(), Scheduler.EULER),
        (running(), Scheduler.EULER),
        (running(Scheduler.DDIM, Scheduler.EULER), Scheduler.EULER),
        (running(Scheduler.FLOW_MATCH_EULER), Scheduler.FLOW_MATCH_EULER),
        # Refused later, in words that name what runs it.
        (running(Scheduler.UNI_PC), Scheduler.EULER),
    ],
)
def test_euler_is_what_runs_the_model(known: DiffusionModel | None, scheduler: Scheduler) -> None:
    request = Txt2ImgRequest(prompt="a hare", sampler_name="euler")
    assert job_request(request, known, 60).model_dump()["scheduler"] is scheduler


def test_the_text_of_each_image() -> None:
    parameters = Parameters(
        model="tiny",
        num_inference_steps=20,
        guidance_scale=7.5,
        seed=5,
        num_images=2,
        negative_prompt="cats",
        scheduler=Scheduler.EULER_ANCESTRAL,
    )
    images = tuple(
        Image(index=index, uri=f"s3://b/{index}", sha256="0" * 64, bytes=1, width=64, height=96, seed=5 + index)
        for index in (0, 1)
    )
    done = job(prompt="a hare", status=GenerationJobStatus(parameters=parameters, images=images))
    assert infotexts(done)[1] == (
        "a hare\n"
        "Negative prompt: cats\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 6, Size: 64x96, Model: tiny, Version: KubeDiffusion"
    )


def test_a_setting_without_effect_is_named_and_left_out_of_what_was_understood() -> None:
    settings = {"sd_model_checkpoint": "tiny", "CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 31337}
    request = Txt2ImgRequest.model_validate({"prompt": "a hare", "override_settings": settings})
    assert request.warnings == [
        "override_settings.CLIP_stop_at_last_layers has no effect here",
        "override_settings.eta_noise_seed_delta has no effect here",
    ]
    assert request.understood()["override_settings"] == {"sd_model_checkpoint": "tiny"}


@pytest.mark.parametrize(
    "settings", [{}, {"override_settings": {}}, {"override_settings": {"sd_model_checkpoint": "t"}}]
)
def test_a_request_whose_settings_all_have_an_effect_is_understood_as_it_is(settings: dict[str, Any]) -> None:
    request = Txt2ImgRequest.model_validate({"prompt": "a hare", **settings})
    assert (request.warnings, request.understood()) == ([], request.model_dump(mode="json"))
