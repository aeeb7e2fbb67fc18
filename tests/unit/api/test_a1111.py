"""The words of AUTOMATIC1111's web UI: samplers of a model, and the text of an image."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from PIL import Image as PillowImage

from kubediffusion.api.doors.a1111 import loras
from kubediffusion.api.doors.a1111.img2img import image_bytes, kept, painted_anew
from kubediffusion.api.doors.a1111.translate import Txt2ImgRequest, infotexts, job_request
from kubediffusion.api.errors import InvalidRequestError
from kubediffusion.resources.adapters import AppliedAdapter
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


def test_an_adapters_scale_is_shown_in_full() -> None:
    shown = loras.with_loras(
        "a hare", [AppliedAdapter(name="ink", scale=0.12345678), AppliedAdapter(name="oil", scale=1)]
    )
    assert shown == "a hare <lora:ink:0.12345678> <lora:oil:1>"


@pytest.mark.parametrize(
    ("prompt", "rest", "adapters"),
    [
        ("a hare", "a hare", None),
        ("a hare <lora:ink:0.8>", "a hare", [{"name": "ink", "scale": 0.8}]),
        ("<LoRA:ink>a hare", "a hare", [{"name": "ink", "scale": None}]),
        ("a <lora:ink:-1> hare <lora:oil:0>", "a  hare", [{"name": "ink", "scale": -1}, {"name": "oil", "scale": 0}]),
        ("a <b> hare <lora>", "a <b> hare <lora>", None),
    ],
)
def test_adapters_are_taken_out_of_the_prompt(prompt: str, rest: str, adapters: Any) -> None:
    wanted = job_request(Txt2ImgRequest(prompt=prompt), None, 60).model_dump()
    assert (wanted["prompt"], wanted["adapters"]) == (rest, adapters)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a hare <lora:ink:0.8:0.6>", "has several scales"),
        ("a hare <lora:ink:strong>", "its scale must be a number, as in <lora:ink:0.8>"),
        ("a hare <lora:ink:nan>", "finite"),
        ("a hare <lora:ink:99>", "less than or equal to 10"),
        ("a hare <lora:Ink XL:1>", "match"),
        ("a hare <lora:>", "match"),
        ("a hare " + "".join(f"<lora:a{n}>" for n in range(5)), "at most 4"),
        ("<lora:ink>", "at least 1 character"),
    ],
)
def test_an_adapter_that_cannot_be_meant_is_refused_at_the_prompt(prompt: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        job_request(Txt2ImgRequest(prompt=prompt), None, 60)
    assert isinstance(refused.value.detail, list)
    (problem,) = refused.value.detail
    assert problem["loc"][:2] == ["body", "prompt"]
    assert words in problem["msg"]


def test_the_text_of_an_image_names_its_adapters_as_the_prompt_did() -> None:
    applied = (AppliedAdapter(name="ink", scale=0.8, digest="ab" * 32), AppliedAdapter(name="oil", scale=1))
    parameters = Parameters(model="m", num_inference_steps=20, guidance_scale=7, seed=5, num_images=1, adapters=applied)
    image = Image(index=0, uri="s3://b/0", sha256="0" * 64, bytes=1, width=64, height=96, seed=5)
    done = job(prompt="a hare", status=GenerationJobStatus(parameters=parameters, images=(image,)))
    first, *_, last = infotexts(done)[0].split("\n")
    assert first == "a hare <lora:ink:0.8> <lora:oil:1>"
    assert 'Lora hashes: "ink: abababababab"' in last


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


@pytest.mark.parametrize("size", [0, 1, 2, 3, 3 * 2**18, 3 * 2**18 + 1, 2**21])
@pytest.mark.parametrize("form", ["{}", "data:image/png;base64,{}", "DATA:;base64,{}"])
def test_an_image_of_any_length_is_decoded(size: int, form: str) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert image_bytes(form.format(base64.b64encode(data).decode()), "mask") == data
    assert image_bytes(form.format(base64.encodebytes(data).decode()), "mask") == data


@pytest.mark.parametrize("text", ["a", "====", "§", "aGk=aGk=", "data:image/png,<svg/>", "file:///etc/passwd", "a b c"])
def test_what_is_no_base64_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        image_bytes(text, "mask")
    detail: Any = refused.value.detail
    assert (detail[0]["loc"], detail[0]["type"]) == (["body", "mask"], "image_refused")


def test_a_mask_is_its_opacity_where_it_has_any_else_its_greys() -> None:
    grey = PillowImage.new("RGB", (1, 1), (64, 64, 64))
    assert (painted_anew(grey).getpixel((0, 0)), kept(grey).getpixel((0, 0))) == (64, 191)
    white = PillowImage.new("RGBA", (1, 1), (255, 255, 255, 10))
    assert (painted_anew(white).getpixel((0, 0)), kept(white).getpixel((0, 0))) == (10, 245)
