"""Images that are made of images are what diffusers' own pipelines for these tasks make, alone and beside others."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from kubediffusion.resources.generation_job import Acceleration, FeatureCaching, GuidanceInterval
from kubediffusion.resources.pipeline_facts import Task
from kubediffusion.worker.engine import EngineInfo, ImageRequest, InputImage, InputImages
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.generic import PipelineEngine
from kubediffusion.worker.execution.image_tasks import task_pipeline, tasks_of
from kubediffusion.worker.execution.schedulers import Schedulers
from kubediffusion.worker.families.input_images import as_pillow
from unit.worker.families.family_rows import SCHEDULERS, saved
from unit.worker.families.parity import levels, run, step_engine
from unit.worker.worker_builders import Recorder, image_request, levels_apart

STEPPED = ("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "flux-dev")
WIDTH, HEIGHT = 96, 64

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def picture(seed: int = 0) -> InputImage:
    """A picture of noise in large squares."""
    squares = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    pixels = squares.repeat(16, 0).repeat(16, 1)
    return InputImage(f"{seed:064x}", WIDTH, HEIGHT, pixels.tobytes())


def left_half() -> InputImage:
    """A mask that keeps the right half."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[:, : WIDTH // 2] = 255
    return InputImage("f" * 64, WIDTH, HEIGHT, pixels.tobytes())


@functools.cache
def built(name: str) -> tuple[Any, ContinuousEngine]:
    pipeline = saved(name)
    return pipeline, step_engine(pipeline)


def of_image(index: int, strength: float, mask: InputImage | None = None, **sampling: Any) -> ImageRequest:
    """One image to make of a picture."""
    shape = {"width": WIDTH, "height": HEIGHT, "steps": 5, "guidance": 4.0, **sampling, "strength": strength}
    return replace(image_request(index, "a cat", "a dog", **shape), inputs=InputImages(picture(), mask))


def by_own_call(pipeline: Any, request: ImageRequest, **arguments: Any) -> np.ndarray[Any, Any]:
    """Make an image by the call of diffusers' own pipeline for the task: ``[height, width, 3]``, uint8."""
    assert request.inputs is not None
    task = "Img2Img" if request.inputs.mask is None else "Inpaint"
    twin = getattr(diffusers, type(pipeline).__name__.replace("Pipeline", f"{task}Pipeline"))(
        **{k: v for k, v in pipeline.components.items() if k != "image_encoder" or v is not None}
    )
    twin.set_progress_bar_config(disable=True)
    sampling = request.sampling
    # Some take the image's size.
    if "width" in inspect.signature(twin.__call__).parameters:
        arguments |= {"width": sampling.width, "height": sampling.height}
    if "Flux" not in type(twin).__name__:
        arguments["negative_prompt"] = request.negative_prompt
    if request.inputs.mask is not None:
        arguments["mask_image"] = as_pillow(request.inputs.mask)
    with torch.inference_mode():
        made = twin(
            prompt=request.prompt,
            image=as_pillow(request.inputs.image),
            strength=sampling.strength,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
            **arguments,
        ).images[0]
    return (made * 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", STEPPED)
def test_an_image_of_an_image_is_stepped_as_the_pipelines_twin_makes_it(name: str) -> None:
    pipeline, engine = built(name)
    for index, strength in enumerate((0.5, 1.0)):
        request = of_image(index, strength)
        assert levels(run(engine, request)[index], by_own_call(pipeline, request)) <= 1


def test_images_of_images_of_text_and_of_other_strengths_share_a_batch() -> None:
    pipeline, engine = built("stable-diffusion")
    of_text = image_request(0, "a horse", "x", steps=4, width=WIDTH, height=HEIGHT, guidance=3.0)
    of_images = [of_image(1, 0.4), of_image(2, 0.8, steps=9), of_image(3, 0.1, steps=4)]
    assert {engine.plan(request).key for request in of_images} == {engine.plan(of_text).key}
    assert [engine.plan(request).calls for request in of_images] == [3, 8, 2]
    made = run(engine, of_text, joining={2: tuple(of_images)})
    alone = run(engine, of_text)[0]
    assert made[0].rgb == alone.rgb
    for request in of_images[:2]:
        assert levels(made[request.id.index], by_own_call(pipeline, request)) <= 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_linear_scheduler_begins_where_the_strength_says(scheduler: str) -> None:
    pipeline, engine = built("stable-diffusion")
    own, request = pipeline.scheduler, of_image(0, 0.6, scheduler=scheduler)
    made = run(engine, request)[0]
    try:
        pipeline.scheduler = Schedulers(own).get(scheduler)
        expected = by_own_call(pipeline, request)
    finally:
        pipeline.scheduler = own
    assert levels(made, expected) <= 1


def test_images_of_one_strength_are_accelerated_in_lockstep_and_others_are_not_with_them() -> None:
    _, engine = built("stable-diffusion")
    saved_half = Acceleration(guidance_interval=GuidanceInterval(stop=0.5), feature_caching=FeatureCaching(interval=2))
    requests = [of_image(index, 0.6, steps=10, acceleration=saved_half) for index in (0, 1)]
    stronger = of_image(2, 0.9, steps=10, acceleration=saved_half)
    assert engine.plan(requests[0]).key == engine.plan(requests[1]).key != engine.plan(stronger).key
    beside, alone = run(engine, *requests)[1], run(engine, requests[1])[1]
    assert levels_apart(beside, alone) <= 1


def test_a_deterministic_image_of_an_image_repeats_and_a_preview_changes_nothing() -> None:
    pipeline, engine = built("stable-diffusion")
    request = of_image(0, 0.5, deterministic=True)
    made = run(engine, request)[0]
    assert run(engine, request)[0] == made
    assert levels(made, by_own_call(pipeline, request)) <= 1
    looked_at = Recorder(asked={1})
    previewed = of_image(1, 0.8, steps=6)
    engine.run((previewed,), looked_at)
    assert looked_at.previews[1]
    assert looked_at.image(1) == run(engine, previewed)[1]


def test_one_step_is_made_however_weak() -> None:
    _, engine = built("flux-dev")
    assert engine.plan(of_image(0, 0.0)).calls == 1
    assert run(engine, of_image(0, 0.0))[0].width == WIDTH
    # diffusers' own call refuses a strength that leaves no step.
    whole = Recorder()
    engine.whole_calls.run((of_image(0, 0.0),), whole)
    assert whole.image(0).width == WIDTH


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl", "flux-dev", "qwen-image"])
def test_pixels_that_a_mask_keeps_are_the_inputs_own(name: str) -> None:
    pipeline, _ = built(name)
    engine = PipelineEngine(pipeline, EngineInfo("diffusers", name, "cpu", "float32", "", {}))
    seen = Recorder()
    request = of_image(0, 0.8, left_half())
    engine.run((request,), seen)
    made = seen.image(0)
    assert (made.width, made.height) == (WIDTH, HEIGHT)
    pixels, given = (np.frombuffer(data, np.uint8).reshape(HEIGHT, WIDTH, 3) for data in (made.rgb, picture().pixels))
    half = WIDTH // 2
    assert np.array_equal(pixels[:, half:], given[:, half:])
    if name != "qwen-image":
        own = by_own_call(pipeline, request)
        assert np.abs(pixels[:, :half].astype(int) - own[:, :half].astype(int)).max() <= 1
    assert np.abs(pixels[:, :half].astype(int) - given[:, :half].astype(int)).max() > 16


def test_a_model_says_what_it_can_make_images_of() -> None:
    assert tasks_of(saved("qwen-image")) == (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE, Task.INPAINTING)
    # Its call takes images as references, without a strength.
    assert tasks_of(saved("flux-2")) == (Task.TEXT_TO_IMAGE,)


def test_a_unet_of_other_latents_than_inpainting_takes_has_no_such_task() -> None:
    unet = SimpleNamespace(config=SimpleNamespace(in_channels=12))
    pipeline = type("StableDiffusionPipeline", (), {"unet": unet})()
    assert tasks_of(pipeline) == (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE)
    assert task_pipeline(pipeline, Task.INPAINTING) is None


def test_what_a_model_cannot_do_fails_its_own_job_alone() -> None:
    _, engine = built("flux-2")
    seen = Recorder()
    plan = engine.plan(of_image(0, 0.5))
    assert not plan.joins
    engine.run((of_image(0, 0.5),), seen)
    assert (seen.failure(0).code, "no task image-to-image" in seen.failure(0).message) == ("PipelineFailed", True)
