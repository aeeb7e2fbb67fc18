"""The engine for any pipeline, by the pipeline's own call, on tiny real pipelines of three families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.generation_job import Scheduler
from kubediffusion.worker import testing
from kubediffusion.worker.engine import BadModelError, EngineLostError, ImageOutput
from kubediffusion.worker.execution.build import info_of
from kubediffusion.worker.execution.generic import PipelineEngine
from kubediffusion.worker.execution.trial import warm_up
from kubediffusion.worker.loading.weights import load_pipeline
from kubediffusion.worker.sources import content_revision
from unit.worker.worker_builders import Recorder, image_request, levels_apart, settings

pytestmark = [
    # diffusers asks NumPy 2 for arrays the old way; a pipeline of ours is not better for failing on it.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


@pytest.fixture(scope="session")
def engine(folders: Callable[[str], Path]) -> PipelineEngine:
    return static_engine(folders("stable_diffusion"))


def static_engine(folder: Path, **spec: Any) -> PipelineEngine:
    given = settings(folder, **spec)
    pipeline, revision = load_pipeline(given, torch.device("cpu"), lambda *_: torch.float32)
    return PipelineEngine(pipeline, info_of(pipeline, revision))


def run(engine: PipelineEngine, *requests: Any, **recorder: Any) -> Recorder:
    seen = Recorder(**recorder)
    engine.run(requests, seen)
    return seen


def pictures(engine: PipelineEngine, *requests: Any) -> list[ImageOutput]:
    seen = run(engine, *requests)
    return [seen.image(request.id.index) for request in requests]


def test_an_engine_knows_what_it_is(engine: PipelineEngine, folders: Callable[[str], Path]) -> None:
    info = engine.info
    assert (info.name, info.pipeline, info.device) == ("diffusers", "StableDiffusionPipeline", "cpu")
    assert info.torch_dtype == "float32"
    assert info.revision == content_revision(folders("stable_diffusion"))
    assert info.versions["torch"] == torch.__version__.split("+")[0]


# PNDM, the tiny Stable Diffusion's own scheduler, calls the model once more than there are steps.
@pytest.mark.parametrize(("family", "calls"), [("stable_diffusion", 4), ("stable_diffusion_xl", 3), ("flux", 3)])
def test_any_text_to_image_pipeline_runs(family: str, calls: int, folders: Callable[[str], Path]) -> None:
    made = static_engine(folders(family))
    seen = run(made, image_request(0, "cat"), image_request(1, "dog"))
    assert seen.steps[0] == seen.steps[1] == sorted(seen.steps[0])
    assert (len(seen.steps[0]), seen.steps[0][-1]) == (calls, 3)
    assert seen.image(0).rgb != seen.image(1).rgb


def test_an_image_is_what_diffusers_makes(engine: PipelineEngine, folders: Callable[[str], Path]) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folders("stable_diffusion"))
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a cat",
        num_inference_steps=3,
        guidance_scale=7.5,
        negative_prompt="dog",
        generator=torch.Generator("cpu").manual_seed(0),
    ).images[0]
    assert pictures(engine, image_request(negative="dog"))[0].rgb == expected.tobytes()


def test_neighbours_change_an_image_by_rounding_only(engine: PipelineEngine) -> None:
    alone = pictures(engine, image_request(1))[0]
    beside = pictures(engine, image_request(0, "x", "y"), image_request(1), image_request(2, "z"))[1]
    assert levels_apart(alone, beside) <= 1


def test_the_same_shape_gives_the_same_bytes(engine: PipelineEngine) -> None:
    first = pictures(engine, image_request(1, deterministic=True))[0]
    pictures(engine, image_request(0, "x", scheduler="EulerAncestralDiscreteScheduler"), image_request(2, "z"))
    assert pictures(engine, image_request(1, deterministic=True))[0] == first


@pytest.mark.parametrize("scheduler", [name for name in Scheduler if name is not Scheduler.FLOW_MATCH_EULER])
def test_every_scheduler_runs(engine: PipelineEngine, scheduler: Scheduler) -> None:
    seen = run(
        engine, image_request(0, steps=6, scheduler=str(scheduler)), image_request(1, steps=6, scheduler=str(scheduler))
    )
    assert [seen.image(index).scheduler for index in seen.outcomes] == [scheduler, scheduler]
    assert seen.steps[0] == sorted(seen.steps[0])
    assert seen.steps[0][-1] == 6


def test_a_scheduler_does_not_stay(engine: PipelineEngine) -> None:
    before = pictures(engine, image_request())[0]
    pictures(engine, image_request(scheduler="DDIMScheduler"))
    assert pictures(engine, image_request())[0] == before


def test_a_scheduler_that_does_not_fit_fails_with_those_that_do(engine: PipelineEngine) -> None:
    failure = run(engine, image_request(scheduler="FlowMatchEulerDiscreteScheduler")).failure(0)
    assert failure.code == "PipelineFailed"
    assert "DDIMScheduler" in failure.message


def test_a_size_is_heeded_even_when_one_side_is_given(engine: PipelineEngine) -> None:
    made = pictures(engine, image_request(width=128))[0]
    assert (made.width, made.height) == (128, testing.SIZE)


def test_a_cut_prompt_is_told_with_the_number_of_tokens(engine: PipelineEngine) -> None:
    fits = "a" * (testing.MAX_TOKENS - 2)
    assert pictures(engine, image_request(0, fits))[0].warnings == ()
    told = pictures(engine, image_request(0, fits + "bc", "d" * testing.MAX_TOKENS))[0].warnings
    words = "is too long for the text encoder: the last 2 tokens were cut, it takes 16 tokens with the marks of start"
    assert told == (f"prompt {words} and end", f"negativePrompt {words} and end")


def test_a_missing_negative_prompt_means_the_same_in_any_batch(folders: Callable[[str], Path]) -> None:
    """Stable Diffusion XL takes zeros for it, which is not what an empty one gives."""
    made = static_engine(folders("stable_diffusion_xl"))
    alone = pictures(made, image_request(0))[0]
    beside = pictures(made, image_request(0), image_request(1, negative="dog"))[0]
    assert levels_apart(alone, beside) <= 1
    assert levels_apart(alone, pictures(made, image_request(0, negative=""))[0]) > 1


class Broken(Exception):  # noqa: N818 - a stand-in
    """What a sabotaged pipeline raises."""


@pytest.fixture
def sabotaged(engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], list[int]]:
    """Have every call of the text encoder do something first; gives the sizes of the calls."""
    encoder = engine.pipeline.text_encoder
    forward = encoder.forward
    sizes: list[int] = []

    def sabotage(deed: Callable[[Any], None]) -> list[int]:
        def changed(tokens: Any, **more: Any) -> Any:
            sizes.append(len(tokens))
            deed(tokens)
            return forward(tokens, **more)

        monkeypatch.setattr(encoder, "forward", changed)
        return sizes

    return sabotage


def poison(engine: PipelineEngine) -> Callable[[Any], None]:
    token = engine.pipeline.tokenizer("q").input_ids[1]

    def deed(tokens: Any) -> None:
        if (tokens == token).any():
            raise Broken("no q please")

    return deed


def test_a_job_that_makes_the_pipeline_raise_fails_alone(engine: PipelineEngine, sabotaged: Any) -> None:
    sabotaged(poison(engine))
    outcomes = run(engine, image_request(0, "cat"), image_request(1, "q"), image_request(2, "dog")).outcomes
    assert isinstance(outcomes[0], ImageOutput)
    assert isinstance(outcomes[2], ImageOutput)
    assert outcomes[1] == JobFailure(ErrorCode.PIPELINE_FAILED, "Broken: no q please")


def test_a_batch_that_does_not_fit_is_halved(engine: PipelineEngine, sabotaged: Any) -> None:
    def deed(tokens: Any) -> None:
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("too much")

    sizes = sabotaged(deed)
    pictures(engine, *(image_request(n) for n in range(4)))
    # Two calls of the encoder an image: the prompt and the negative one.
    assert sizes == [4, 2, 1, 1, 1, 1, 2, 1, 1, 1, 1]


def test_an_image_that_does_not_fit_alone_fails(engine: PipelineEngine, sabotaged: Any) -> None:
    def deed(_tokens: Any) -> None:
        raise torch.OutOfMemoryError("too much")

    sabotaged(deed)
    assert run(engine, image_request()).failure(0).code == "OutOfMemory"


def test_pixels_that_are_not_numbers_fail_their_image_alone(
    engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = engine.pipeline.vae.decode

    def half_broken(latents: Any, **more: Any) -> Any:
        (images,) = decode(latents, **more)
        images[0, 0, 0, 0] = float("nan")
        return (images,)

    monkeypatch.setattr(engine.pipeline.vae, "decode", half_broken)
    seen = run(engine, image_request(0), image_request(1))
    assert seen.failure(0).code == "InvalidImage"
    assert seen.image(1).rgb


def test_a_batch_that_nobody_wants_stops_at_the_next_step(engine: PipelineEngine) -> None:
    seen = run(engine, image_request(0, steps=50), image_request(1, steps=50), unwanted={0: 2, 1: 3})
    assert seen.outcomes == {}
    assert len(seen.steps[1]) == 3


def test_a_batch_goes_on_for_those_who_want_it(engine: PipelineEngine) -> None:
    seen = run(engine, image_request(0), image_request(1), unwanted={0: 1})
    assert isinstance(seen.outcomes[1], ImageOutput)


def test_a_warm_up_changes_nothing(engine: PipelineEngine) -> None:
    before = pictures(engine, image_request())[0]
    warm_up(engine)
    assert pictures(engine, image_request())[0] == before


def test_a_lost_device_ends_the_engine(engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch, sabotaged: Any) -> None:
    def deed(_tokens: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    sabotaged(deed)
    monkeypatch.setattr(type(engine.pipeline), "device", torch.device("cuda"))
    monkeypatch.setattr(type(engine.pipeline), "_execution_device", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(EngineLostError):
        run(engine, image_request())


def test_a_flagged_image_is_blank_and_marked(tmp_path: Path) -> None:
    folder = testing.save_stable_diffusion(tmp_path / "safe", safety_checker=True)
    made = static_engine(folder, safetyChecker=True)
    checker = made.pipeline.safety_checker.requires_grad_(False)
    # Every picture is closer to the forbidden concepts than this.
    checker.concept_embeds_weights.fill_(-2.0)
    flagged = pictures(made, image_request())[0]
    assert (flagged.flagged, set(flagged.rgb)) == (True, {0})
    checker.concept_embeds_weights.fill_(2.0)
    checker.special_care_embeds_weights.fill_(2.0)
    assert not pictures(made, image_request())[0].flagged


def test_a_safety_checker_that_nobody_asked_for_is_not_loaded(tmp_path: Path) -> None:
    folder = testing.save_stable_diffusion(tmp_path / "safe", safety_checker=True)
    made = static_engine(folder)
    assert made.pipeline.safety_checker is None
    assert not pictures(made, image_request())[0].flagged


def test_weights_that_do_not_fit_their_config_are_a_bad_model(folders: Callable[[str], Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders("stable_diffusion"), broken)
    config = broken / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latent_channels": 8}))
    with pytest.raises(BadModelError, match="cannot be loaded"):
        static_engine(broken)


def test_an_unknown_pipeline_class_is_a_bad_model(folders: Callable[[str], Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folders("stable_diffusion"), other)
    index = other / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "NoSuchPipeline"}))
    with pytest.raises(BadModelError, match="NoSuchPipeline"):
        static_engine(other)


def test_missing_weights_are_a_bad_model(folders: Callable[[str], Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folders("stable_diffusion"), other)
    for weights in (other / "unet").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(BadModelError, match="cannot be loaded"):
        static_engine(other)
