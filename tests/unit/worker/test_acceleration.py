"""Speed for quality: what is left out of which call, and that nothing else changes.

On tiny real pipelines of both families.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.generation_job import Acceleration, FeatureCaching, GuidanceInterval
from kubediffusion.resources.testing import present
from kubediffusion.worker.assignments import Assignments
from kubediffusion.worker.engine import ImageOutput, ImageRequest
from kubediffusion.worker.engine.forward_mode import FULL, Features, ForwardMode, forward_modes
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.continuous import NAME, ContinuousEngine
from kubediffusion.worker.execution.stepping import EagerStepRunner
from kubediffusion.worker.families import features
from unit.worker.continuous_engines import batch_key, load, run
from unit.worker.worker_builders import Recorder, bound_job, code_of, image_request, levels_apart, settings

EULER, HEUN = "EulerDiscreteScheduler", "HeunDiscreteScheduler"

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def asked(interval: tuple[float, float] | None = None, caching: int | None = None) -> Acceleration:
    return Acceleration(
        guidance_interval=GuidanceInterval(start=interval[0], stop=interval[1]) if interval else None,
        feature_caching=FeatureCaching(interval=caching) if caching else None,
    )


BOTH = asked((0.2, 0.7), 3)


@pytest.fixture(scope="module")
def tiny(folders: Callable[[str], Path]) -> ContinuousEngine:
    return load(folders("stable_diffusion"))


@pytest.fixture(params=["stable_diffusion", "stable_diffusion_xl"])
def either(request: pytest.FixtureRequest, folders: Callable[[str], Path]) -> ContinuousEngine:
    """An engine of each family."""
    return load(folders(request.param))


def task(index: int = 0, prompt: str = "a cat", **shape: Any) -> ImageRequest:
    sampling: dict[str, Any] = {"steps": 8, "scheduler": EULER, "acceleration": BOTH}
    return image_request(index, prompt, **sampling | shape)


def picture(engine: Any, wanted: ImageRequest) -> ImageOutput:
    outcome = run(engine, wanted).outcomes[wanted.id.index]
    assert isinstance(outcome, ImageOutput), outcome
    return outcome


def calls_of(engine: ContinuousEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the UNet's parts tell when they are computed: ``out2`` is the last layer, of two rows."""
    seen: list[str] = []
    unet = engine.pipeline.unet
    for name, module in (("deep", unet.mid_block), ("out", unet.conv_out)):
        forward = module.forward

        def told(hidden: Any, *given: Any, name: str = name, forward: Any = forward, **more: Any) -> Any:
            seen.append(f"{name}{len(hidden)}")
            return forward(hidden, *given, **more)

        monkeypatch.setattr(module, "forward", told)
    return seen


def test_what_each_call_computes() -> None:
    whole, alone = ForwardMode(), ForwardMode(prompt_only=True)
    assert forward_modes(asked((0.25, 0.75)), 8, guided=True) == (*[alone] * 2, *[whole] * 4, *[alone] * 2)
    assert forward_modes(asked((0.25, 0.75)), 8, guided=False) == (whole,) * 8
    keep, reuse = ForwardMode(Features.REFRESH), ForwardMode(Features.REUSE)
    assert forward_modes(asked(None, 3), 7, guided=True) == (keep, reuse, reuse, keep, reuse, reuse, keep)


def test_where_guidance_begins_nothing_is_reused_that_was_not_kept_for_it() -> None:
    chosen = forward_modes(asked((0.25, 0.75), 4), 8, guided=True)
    new, old = Features.REFRESH, Features.REUSE
    assert [mode.features for mode in chosen] == [new, old, new, old, new, old, old, old]
    assert [mode.prompt_only for mode in chosen] == [True, True, False, False, False, False, True, True]


@pytest.mark.parametrize(("start", "stop"), [(0.0, 0.5), (0.25, 0.75), (0.3, 1.0), (0.75, 0.8)])
def test_the_interval_is_that_of_diffusers_guiders(start: float, stop: float) -> None:
    guider = ClassifierFreeGuidance(start=start, stop=stop)
    for call, mode in enumerate(forward_modes(asked((start, stop)), 20, guided=True)):
        guider.set_state(step=call, num_inference_steps=20, timestep=torch.ones(1))
        assert mode.prompt_only != guider._is_cfg_enabled()  # noqa: SLF001 - has no public name


@given(st.integers(1, 60), st.integers(2, 20), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_a_shallow_call_follows_one_that_kept_what_it_needs(
    calls: int, period: int, start: float, stop: float, guided: bool
) -> None:
    kept: ForwardMode | None = None
    since = 0
    for mode in forward_modes(asked((start, stop), period), calls, guided=guided):
        if mode.features is Features.REFRESH:
            kept, since = mode, 0
        else:
            since += 1
            assert kept is not None
            assert since < period
            assert mode.prompt_only or not kept.prompt_only


def test_nothing_is_left_out_by_the_whole_interval_and_caching_at_every_step() -> None:
    assert asked((0.0, 1.0), 1).effective is None
    assert Acceleration().effective is None
    assert asked((0.0, 1.0), 2).effective == asked(None, 2)
    assert asked((0.0, 0.5), 1).effective == asked((0.0, 0.5))


def test_a_call_reuses_what_an_earlier_one_kept(either: ContinuousEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of(either, monkeypatch)
    made = picture(either, task(acceleration=asked(None, 3)))
    assert seen == ["deep2", "out2", "out2", "out2"] * 2 + ["deep2", "out2", "out2"]
    assert made.engine == NAME
    usual = picture(either, task(acceleration=None))
    assert made.rgb != usual.rgb


def test_a_call_that_keeps_what_it_computes_gives_what_any_whole_call_gives(either: ContinuousEngine) -> None:
    for guidance in (1.0, 7.5):
        kept = picture(either, task(steps=1, guidance=guidance, acceleration=asked(None, 2)))
        assert kept.rgb == picture(either, task(steps=1, guidance=guidance, acceleration=None)).rgb


def test_outside_its_interval_guidance_is_not_computed(
    either: ContinuousEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls_of(either, monkeypatch)
    picture(either, task(acceleration=asked((0.25, 0.5))))
    assert [call for call in seen if call.startswith("out")] == [*["out1"] * 2, *["out2"] * 2, *["out1"] * 4]
    assert seen.count("deep1") == 6


def test_without_any_guidance_in_its_interval_an_image_is_that_of_scale_one(either: ContinuousEngine) -> None:
    nowhere = picture(either, task(acceleration=asked((0.99, 1.0))))
    assert levels_apart(nowhere, picture(either, task(guidance=1.0, acceleration=None))) <= 1


def test_where_there_is_no_guidance_the_interval_changes_nothing_and_a_warning_says_so(tiny: ContinuousEngine) -> None:
    made = picture(tiny, task(guidance=1.0, acceleration=asked((0.2, 0.7))))
    assert made.rgb == picture(tiny, task(guidance=1.0, acceleration=None)).rgb
    assert made.warnings == ("acceleration.guidanceInterval has no effect: guidanceScale is not above 1",)


@pytest.mark.parametrize("scheduler", [None, HEUN, "DPMSolverMultistepScheduler"])
def test_a_picture_does_not_depend_on_its_neighbours(either: ContinuousEngine, scheduler: str | None) -> None:
    tasks = [task(index, ("cat", "dog", "fish")[index], scheduler=scheduler) for index in range(3)]
    together = run(either, *tasks)
    assert together.offers == []
    for one in tasks:
        assert levels_apart(together.outcomes[one.id.index], picture(either, one)) <= 1
        assert together.steps[one.id.index][-1] == 8


def test_accelerated_images_share_a_batch_only_with_their_like_from_its_begin(tiny: ContinuousEngine) -> None:
    plan = tiny.plan(task())
    assert not plan.joins
    assert plan.key == tiny.plan(task(guidance=3.0)).key
    others = [
        task(steps=9),
        task(scheduler=HEUN),
        task(acceleration=asked(None, 3)),
        task(acceleration=None),
    ]
    others += [task(deterministic=True), task(width=128), task(guidance=1.0)]
    assert len({plan.key, *(tiny.plan(other).key for other in others)}) == 8


def test_what_is_not_accelerated_is_computed_as_ever_beside_the_same_tensors(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folders("stable_diffusion"))
    before = picture(engine, task(acceleration=None))
    picture(engine, task())
    assert len(engine.prepared_batches) == 1
    seen = calls_of(engine, monkeypatch)
    assert picture(engine, task(acceleration=None)) == before
    assert seen == ["deep2", "out2"] * 8


def test_an_accelerated_deterministic_image_has_the_same_bytes_on_every_attempt(tiny: ContinuousEngine) -> None:
    wanted = task(7, deterministic=True)
    first = picture(tiny, wanted)
    run(tiny, *(task(index, "x") for index in range(4)))
    assert picture(tiny, wanted) == first
    assert levels_apart(first, picture(tiny, task(7))) <= 1


def test_a_cancelled_image_leaves_its_accelerated_neighbours_as_they_are(tiny: ContinuousEngine) -> None:
    tasks = [task(index, acceleration=asked(None, 4)) for index in range(3)]
    undisturbed = run(tiny, *tasks).outcomes
    # At step 2 what was kept at step 0 moves with its image.
    seen = run(tiny, *tasks, unwanted={0: 2})
    assert sorted(seen.outcomes) == [1, 2]
    assert seen.loads[2].images == 2
    for index in (1, 2):
        assert levels_apart(seen.outcomes[index], undisturbed[index]) <= 1


def test_more_images_than_slots_run_one_batch_after_the_other(folders: Callable[[str], Path]) -> None:
    engine = load(folders("stable_diffusion"), images=2)
    tasks = [task(index) for index in range(3)]
    seen = run(engine, *tasks)
    assert [load.images for load in seen.loads] == [2] * 8 + [1] * 8
    assert sorted(seen.outcomes) == [0, 1, 2]
    for one in tasks:
        assert levels_apart(seen.outcomes[one.id.index], picture(engine, one)) <= 1


def test_a_batch_that_does_not_fit_is_split_and_goes_on_where_it_was(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folders("stable_diffusion"))
    tasks = [task(index) for index in range(4)]
    whole = run(engine, *tasks).outcomes
    output = engine.pipeline.unet.conv_out
    forward = output.forward
    failed: list[bool] = []

    def short_of_memory(hidden: Any) -> Any:
        # In a shallow call of guided images: what was kept must come back with those put aside.
        if len(hidden) == 8 and len(seen.loads) == 4:
            failed.append(True)
            raise torch.OutOfMemoryError("too much")
        return forward(hidden)

    seen = Recorder()
    monkeypatch.setattr(output, "forward", short_of_memory)
    engine.run(tuple(tasks), seen)
    assert failed
    assert [load.images for load in seen.loads] == [4] * 4 + [2] * 8
    for one in tasks:
        assert levels_apart(seen.outcomes[one.id.index], whole[one.id.index]) <= 1
        assert len(seen.steps[one.id.index]) == 8


def test_memory_that_does_not_suffice_for_what_is_kept_splits_the_batch(
    tiny: ContinuousEngine, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folders("stable_diffusion"))
    refused: list[int] = []
    shape = features.features_shape

    def first_refused(*given: Any) -> Any:
        if not refused:
            refused.append(1)
            raise torch.OutOfMemoryError("too much")
        return shape(*given)

    tasks = [task(index) for index in range(4)]
    whole = run(tiny, *tasks).outcomes
    # Only the engine's own code runs where the features' memory is taken: nothing of the pipeline could lack it.
    monkeypatch.setattr(features, "features_shape", first_refused)
    seen = run(engine, *tasks)
    assert refused == [1]
    assert [load.images for load in seen.loads] == [2] * 16
    assert sorted(seen.outcomes) == [0, 1, 2, 3]
    for index in whole:
        assert levels_apart(seen.outcomes[index], whole[index]) <= 1


def test_only_the_culprit_of_a_step_that_raises_fails_and_nobody_runs_unaccelerated(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folders("stable_diffusion"))
    tasks = [task(index) for index in range(3)]
    expected = run(engine, *tasks).outcomes
    decided = engine.pipeline.unet.conv_in
    forward = decided.forward
    side = engine.pipeline.unet.config.sample_size
    # Before its first step an image is known by its noise, which only its scheduler has scaled.
    noise = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(1)).flatten()

    def picky(latents: Any) -> Any:
        alike = torch.nn.functional.cosine_similarity(latents.flatten(1), noise[None])
        if (alike > 0.9999).any():
            raise ValueError("not this one")
        return forward(latents)

    monkeypatch.setattr(decided, "forward", picky)
    seen = run(engine, *tasks)
    outcomes = seen.outcomes
    assert outcomes[1] == JobFailure(ErrorCode.PIPELINE_FAILED, "ValueError: not this one")
    for index in (0, 2):
        assert (seen.image(index).engine, levels_apart(outcomes[index], expected[index]) <= 1) == (NAME, True)


def test_pixels_that_are_not_numbers_fail_their_accelerated_image_alone(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(folders("stable_diffusion"))
    decode, calls = engine.pipeline.vae.decode, []

    def first_broken(latents: Any, **more: Any) -> Any:
        (image,) = decode(latents, **more)
        calls.append(1)
        return (image * float("nan") if len(calls) == 1 else image,)

    monkeypatch.setattr(engine.pipeline.vae, "decode", first_broken)
    outcomes = run(engine, task(0), task(1)).outcomes
    assert code_of(outcomes[0]) == "InvalidImage"
    assert isinstance(outcomes[1], ImageOutput)


@pytest.mark.parametrize("family", ["flux", "stable_diffusion"])
def test_what_cannot_be_accelerated_is_refused_by_name_and_alone(family: str, folders: Callable[[str], Path]) -> None:
    engine = load_engine(settings(folders(family)))
    # In the one the pipeline, in the other the scheduler, which draws noise.
    scheduler = None if family == "flux" else "EulerAncestralDiscreteScheduler"
    outcome = run(engine, task(scheduler=scheduler)).outcomes[0]
    assert isinstance(outcome, JobFailure)
    assert outcome.code == "PipelineFailed"
    assert outcome.message.startswith("acceleration: ")
    assert "Leave it out" in outcome.message
    assert isinstance(picture(engine, task(scheduler=scheduler, acceleration=None)), ImageOutput)


def test_a_unet_that_is_not_divided_can_still_leave_guidance_out(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folders("stable_diffusion"), tmp_path / "centred")
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "center_input_sample": True}))
    engine = load(copy)
    assert isinstance(run(engine, task()).outcomes[0], JobFailure)
    assert isinstance(run(engine, task(acceleration=asked((0.0, 0.5)))).outcomes[0], ImageOutput)


def test_a_job_hands_its_acceleration_to_the_engine() -> None:
    wire = {"guidanceInterval": {"start": 0.0, "stop": 0.5}, "featureCaching": {"interval": 2}}
    assignments = Assignments("worker-a")
    assignments.observe(bound_job(parameters={"acceleration": wire}), gone=False)
    (assignment,) = assignments
    assert assignment.sampling.acceleration == asked((0.0, 0.5), 2)
    assert assignment.parameters.to_wire()["acceleration"] == wire
    assert "acceleration" not in present(bound_job().status.parameters).to_wire()


def test_whole_is_what_every_ordinary_step_computes(tiny: ContinuousEngine) -> None:
    prepared = tiny.prepared_batches.of(batch_key(tiny, task(acceleration=None)))
    assert isinstance(prepared.step_runner, EagerStepRunner)
    assert prepared.step_runner.mode == FULL
    assert np.isfinite(prepared.batch.input_batch(1).arguments[1].numpy()).all()
