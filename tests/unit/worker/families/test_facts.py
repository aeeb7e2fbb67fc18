"""What is told of each family's pipeline: defaults, the grid of sizes, what has an effect; and prompts that are cut."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kubediffusion.resources.diffusion_model import DiffusionModel, DiffusionModelSpec
from kubediffusion.resources.failures import JobFailure
from kubediffusion.resources.generation_job import GenerationJobSpec
from kubediffusion.resources.model_source import ModelSource
from kubediffusion.resources.parameters import check_limits
from kubediffusion.worker.engine import EngineInfo, ImageOutput
from kubediffusion.worker.execution.facts import facts_of
from kubediffusion.worker.execution.generic import PipelineEngine
from kubediffusion.worker.families.registry import Unsupported, family_of
from unit.worker.families.family_rows import ROWS, saved
from unit.worker.families.parity import FamilyRow, run, step_engine
from unit.worker.worker_builders import Recorder, image_request

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    # diffusers' Chroma imports it from its old place.
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_familys_own_defaults_and_what_has_an_effect_are_told(row: FamilyRow) -> None:
    pipeline = row.build() if row.build is not None else saved(row.name)
    family = family_of(pipeline)
    assert not isinstance(family, Unsupported)
    facts = facts_of(pipeline, family)
    defaults = facts.defaults
    told = (defaults.num_inference_steps, defaults.guidance_scale, facts.guidance, facts.negative_prompt)
    assert told == row.facts
    assert all(side % (facts.size_multiple or 1) == 0 for size in row.sizes for side in size)
    assert facts.schedulers
    assert facts.name == type(pipeline).__name__


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_prompt_that_an_encoder_cuts_gets_a_warning(row: FamilyRow) -> None:
    pipeline = row.build() if row.build is not None else saved(row.name)
    engine = step_engine(pipeline)
    width, height = row.sizes[0]
    request = image_request(0, "a cat", steps=2, width=width, height=height)
    short = run(engine, request)[0]
    limit = facts_of(pipeline, engine.family).prompt_tokens
    assert isinstance(short, ImageOutput)
    assert not [warning for warning in short.warnings if "too long" in warning]
    if limit is None:
        return
    cut = run(engine, replace(request, prompt="cat " * limit))[0]
    assert isinstance(cut, ImageOutput)
    assert [warning for warning in cut.warnings if warning.startswith("prompt is too long")]


@pytest.mark.parametrize(
    ("name", "multiple"),
    [("lumina-2", 16), ("cogview-4", 16), ("bria-fibo", 16), ("hunyuan-dit", None), ("sana", None)],
)
def test_a_pipeline_without_a_family_tells_the_sizes_that_its_own_call_refuses(name: str, multiple: int | None) -> None:
    pipeline = saved(name)
    facts = facts_of(pipeline, None)
    assert facts.size_multiple == multiple
    engine = PipelineEngine(pipeline, EngineInfo("diffusers", facts.name, "cpu", "float32", "", {}))
    for side in (64, 72):
        seen = Recorder()
        engine.run((image_request(0, "a cat", steps=1, width=side, height=side),), seen)
        refused = isinstance(seen.outcomes[0], JobFailure)
        assert refused is (side % (multiple or 8) != 0), seen.outcomes
        # The door says the same, before there is a job.
        model = DiffusionModel(spec=DiffusionModelSpec(source=ModelSource())).with_pipeline(facts)
        spec = GenerationJobSpec(prompt="a cat", width=side, height=side)
        assert bool(list(check_limits(spec, model))) is refused
