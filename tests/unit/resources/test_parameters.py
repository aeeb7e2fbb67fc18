"""What a job runs with: its own word, else its model's, else its pipeline's; and what the model refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.diffusion_model import DiffusionModel, JobDefaults, JobLimits
from kubediffusion.resources.generation_job import (
    MAX_SEED,
    Acceleration,
    FeatureCaching,
    GenerationJobSpec,
    GuidanceInterval,
    InputRole,
    JobInput,
    Scheduler,
)
from kubediffusion.resources.parameters import check_limits, draw_seed, resolve_again, resolve_parameters
from kubediffusion.resources.pipeline_facts import PipelineDefaults, PipelineFacts, Task, facts_from_json
from kubediffusion.resources.testing import model

LIMITED = ("num_inference_steps", "width", "height", "num_images")
FULL = {
    "num_inference_steps": 30,
    "guidance_scale": 3.0,
    "negative_prompt": "blurry",
    "width": 256,
    "height": 512,
    "scheduler": "DDIMScheduler",
}


def spec(**fields: Any) -> Any:
    return GenerationJobSpec(prompt="a fox", **fields)


def resolved(defaults: Any = None, **fields: Any) -> Any:
    return resolve_parameters(spec(**fields), model(defaults=defaults), seed=7)


def test_a_prompt_alone_runs_with_the_projects_defaults() -> None:
    parameters = resolved()
    assert (parameters.num_inference_steps, parameters.guidance_scale, parameters.num_images) == (50, 7.5, 1)
    assert (parameters.model, parameters.deterministic) == ("emoji", False)


def test_what_only_the_pipeline_knows_stays_open() -> None:
    parameters = resolved()
    assert (parameters.width, parameters.height, parameters.scheduler, parameters.negative_prompt) == (None,) * 4


def test_the_models_defaults_come_before_the_projects() -> None:
    parameters = resolved(JobDefaults(**FULL))
    assert {name: getattr(parameters, name) for name in FULL} == FULL


def test_the_jobs_own_word_comes_first() -> None:
    other = JobDefaults(
        num_inference_steps=4,
        guidance_scale=1,
        negative_prompt="x",
        width=64,
        height=64,
        scheduler="LMSDiscreteScheduler",
    )
    parameters = resolved(other, **FULL)
    assert {name: getattr(parameters, name) for name in FULL} == FULL


def test_no_guidance_and_no_negative_prompt_are_words_too() -> None:
    parameters = resolved(
        JobDefaults(guidance_scale=5.0, negative_prompt="blurry"), guidance_scale=0, negative_prompt=""
    )
    assert (parameters.guidance_scale, parameters.negative_prompt) == (0, "")


def test_prompts_are_weighed_where_the_job_says_so_or_else_its_model() -> None:
    assert resolved().prompt_weighting is None
    of_model = JobDefaults(prompt_weighting=True)
    assert resolved(of_model).prompt_weighting is True
    # Absent, not false: what was not asked for is in no recipe.
    assert "promptWeighting" not in resolved(of_model, prompt_weighting=False).to_wire()
    assert resolved(prompt_weighting=True).prompt_weighting is True


def test_a_job_has_its_own_acceleration_whole_or_its_models() -> None:
    of_model = Acceleration(guidance_interval=GuidanceInterval(stop=0.8))
    own = Acceleration(feature_caching=FeatureCaching(interval=3))
    assert resolved().acceleration is None
    assert resolved(JobDefaults(acceleration=of_model)).acceleration == of_model
    assert resolved(JobDefaults(acceleration=of_model), acceleration=own).acceleration == own


def test_acceleration_that_changes_nothing_is_none_and_is_not_written() -> None:
    of_model = JobDefaults(acceleration=Acceleration(guidance_interval=GuidanceInterval(stop=0.8)))
    nothing = Acceleration(guidance_interval=GuidanceInterval(), feature_caching=FeatureCaching(interval=1))
    for own in (Acceleration(), nothing):
        parameters = resolved(of_model, acceleration=own)
        assert parameters.acceleration is None
        assert "acceleration" not in parameters.to_wire()


def test_a_job_that_names_no_steps_never_runs_more_than_its_model_allows() -> None:
    few = model(limits=JobLimits(num_inference_steps=8))
    assert resolve_parameters(spec(), few, seed=7).num_inference_steps == 8


@given(st.integers(0, MAX_SEED), st.integers(0, MAX_SEED))
def test_a_seed_that_is_named_is_kept_and_one_that_is_not_is_the_drawn_one(named: Any, drawn: Any) -> None:
    assert resolve_parameters(spec(seed=named), model(), drawn).seed == named
    assert resolve_parameters(spec(), model(), drawn).seed == drawn


def test_drawn_seeds_differ_and_every_tool_can_show_them() -> None:
    drawn = {draw_seed() for _ in range(100)}
    assert len(drawn) > 90
    assert all(0 <= seed < 2**32 for seed in drawn)


@given(st.sampled_from(LIMITED), st.integers(1, 16), st.integers(1, 16))
def test_a_field_is_refused_exactly_when_it_exceeds_its_limit(field: Any, asked: Any, limit: Any) -> None:
    unit = 64 if field in {"width", "height"} else 1
    limited = model(limits=JobLimits(**{field: limit * unit}))
    problems = list(check_limits(spec(**{field: asked * unit}), limited))
    assert bool(problems) == (asked > limit)
    for problem in problems:
        assert problem.field == field
        assert f"{asked * unit} exceeds the limit {limit * unit} of model 'emoji'" in problem.message


def test_every_field_that_is_too_much_is_named() -> None:
    problems = check_limits(spec(num_inference_steps=151, width=2048, height=2048, num_images=5), model())
    assert {problem.field for problem in problems} == set(LIMITED)


def test_a_job_that_asks_for_nothing_special_is_within_every_limit() -> None:
    assert list(check_limits(spec(), model(limits=JobLimits(num_inference_steps=1, width=64, height=64)))) == []


@given(st.integers(1, 4), st.integers(-8, 0))
def test_the_seed_of_every_image_is_a_seed(images: Any, below: Any) -> None:
    seed = MAX_SEED + below
    problems = [problem.field for problem in check_limits(spec(seed=seed, num_images=images), model())]
    assert problems == (["seed"] if seed + images - 1 > MAX_SEED else [])


FLUX = PipelineFacts(
    name="FluxPipeline",
    defaults=PipelineDefaults(num_inference_steps=28, guidance_scale=3.5, width=1024, height=1024),
    size_multiple=16,
    schedulers=(Scheduler.FLOW_MATCH_EULER,),
)


def known(**of_model: Any) -> DiffusionModel:
    """A model whose pipeline a worker has told of."""
    return model(**of_model).with_pipeline(FLUX)


def test_a_job_and_a_model_that_name_nothing_run_with_the_pipelines_own() -> None:
    parameters = resolve_parameters(spec(), known(), seed=7)
    assert (parameters.num_inference_steps, parameters.guidance_scale) == (28, 3.5)
    # What the pipeline's call takes where none is given.
    assert (parameters.width, parameters.height) == (None, None)


def test_the_pipelines_own_come_after_the_jobs_and_the_models_word_and_below_its_limit() -> None:
    of_model = JobDefaults(num_inference_steps=20, guidance_scale=2.0)
    assert resolve_parameters(spec(), known(defaults=of_model), seed=7).num_inference_steps == 20
    parameters = resolve_parameters(spec(guidance_scale=0), known(defaults=of_model), seed=7)
    assert (parameters.num_inference_steps, parameters.guidance_scale) == (20, 0)
    assert resolve_parameters(spec(), known(limits=JobLimits(num_inference_steps=8)), seed=7).num_inference_steps == 8


def test_what_was_known_of_an_earlier_spec_says_nothing_of_todays() -> None:
    changed = known().model_copy(update={"metadata": known().metadata.model_copy(update={"generation": 2})})
    assert changed.pipeline is None
    assert resolve_parameters(spec(), changed, seed=7).num_inference_steps == 50
    assert list(check_limits(spec(width=520, height=520), changed)) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (28, 3.5)),
        ({"num_inference_steps": 50}, (50, 3.5)),
        ({"guidance_scale": 7.5}, (28, 7.5)),
        ({"num_inference_steps": 50, "guidance_scale": 7.5}, (50, 7.5)),
    ],
)
def test_the_first_job_of_a_cold_model_gets_the_pipelines_own_where_it_names_nothing(
    fields: dict[str, Any], expected: tuple[int, float]
) -> None:
    bound = resolve_parameters(spec(**fields), model(), seed=7)
    again = resolve_again(bound, spec(**fields), known())
    assert (again.num_inference_steps, again.guidance_scale) == expected
    assert resolve_again(again, spec(**fields), known()) == again


def test_what_was_resolved_from_the_models_spec_is_not_resolved_again() -> None:
    of_model = known(defaults=JobDefaults(num_inference_steps=12))
    bound = resolve_parameters(spec(), model(defaults=JobDefaults(num_inference_steps=12)), seed=7)
    assert resolve_again(bound, spec(), of_model).num_inference_steps == 12
    # Resolved while the model's spec named 9: a retry runs the same.
    kept = bound.model_copy(update={"num_inference_steps": 9})
    assert resolve_again(kept, spec(), of_model).num_inference_steps == 9


def refused(model_of_job: DiffusionModel, **fields: Any) -> list[tuple[str, str]]:
    return [(error.field, error.message) for error in check_limits(spec(**fields), model_of_job)]


def test_a_size_off_the_grid_is_refused_with_those_that_fit() -> None:
    assert refused(known(), width=520, height=512) == [
        ("width", "520 is no multiple of 16, as model 'emoji' needs; ask for 512 or 528")
    ]
    assert refused(known(), width=512, height=512) == []
    assert refused(model(), width=520, height=512) == []


def test_a_side_that_comes_alone_is_refused_unless_the_model_has_the_other() -> None:
    why = "missing beside width 512; give both, or neither for the own size of model 'emoji', 1024 by 1024"
    assert refused(known(), width=512) == [("height", why)]
    assert [field for field, _ in refused(known(), height=512)] == ["width"]
    assert refused(known(defaults=JobDefaults(height=512)), width=512) == []
    assert refused(model(), width=512) == []


def test_a_scheduler_that_cannot_run_the_model_is_refused_with_those_that_can() -> None:
    message = "DDIMScheduler cannot run model 'emoji'; ask for FlowMatchEulerDiscreteScheduler, or for none"
    assert refused(known(), scheduler="DDIMScheduler") == [("scheduler", message)]
    assert refused(known(), scheduler="FlowMatchEulerDiscreteScheduler") == []
    assert refused(model(), scheduler="DDIMScheduler") == []


def test_a_negative_prompt_is_refused_where_the_model_is_not_guided_by_one() -> None:
    unguided = model(defaults=JobDefaults(negative_prompt="blurry")).with_pipeline(
        FLUX.model_copy(update={"negative_prompt": False})
    )
    message = "model 'emoji' takes none: FluxPipeline is not guided by it here; leave it out"
    assert refused(unguided, negative_prompt="rain") == [("negative_prompt", message)]
    # Clients send an empty one that nobody typed, and the model's own is not the job's wish.
    assert refused(unguided, negative_prompt="") == []
    assert refused(unguided) == []
    assert refused(known(), negative_prompt="rain") == []
    # A scale of 1 turns guidance off on a model that has it: the job's own choice, which a warning names.
    assert refused(known(), negative_prompt="rain", guidance_scale=1) == []
    assert refused(model(), negative_prompt="rain") == []


def test_what_a_worker_tells_of_its_pipeline_is_read_as_it_was_written() -> None:
    assert facts_from_json(FLUX.to_json()) == FLUX
    assert facts_from_json("the worker takes jobs") is None
    assert facts_from_json('{"name": "x", "defaults": {"numInferenceSteps": 0}}') is None


IMAGE = JobInput(role=InputRole.IMAGE, id="a" * 64)
MASK = JobInput(role=InputRole.MASK, id="b" * 64)


def test_a_strength_is_of_an_input_and_named_with_it() -> None:
    assert resolved(inputs=(IMAGE,)).strength == 0.8
    assert resolved(inputs=(MASK, IMAGE), strength=0).strength == 0
    assert resolved(inputs=(MASK, IMAGE)).inputs == (MASK, IMAGE)
    assert {"inputs", "strength"} & resolved().to_wire().keys() == set()


def test_a_task_that_a_model_has_not_is_refused_once_that_is_known() -> None:
    facts = FLUX.model_copy(update={"tasks": (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE)})
    asked = spec(inputs=(IMAGE, MASK))
    (refused,) = check_limits(asked, model().with_pipeline(facts))
    assert refused.field == "inputs"
    assert "has no task inpainting; it has text-to-image, image-to-image" in refused.message
    for taken in (spec(), spec(inputs=(IMAGE,))):
        assert list(check_limits(taken, model().with_pipeline(facts))) == []
    # A worker of an earlier version has told of no task.
    for unknown in (model(), known()):
        assert list(check_limits(asked, unknown)) == []
