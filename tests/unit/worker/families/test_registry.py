"""Which pipelines are stepped, and what is said of those that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.worker.engine import GuidanceKind
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.generic import PipelineEngine
from kubediffusion.worker.families import registry
from kubediffusion.worker.families.base import ModelFamily
from kubediffusion.worker.families.registry import Unsupported, family_class, family_of
from kubediffusion.worker.families.stable_diffusion import StableDiffusion
from unit.worker.worker_builders import image_request, settings

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


@pytest.mark.parametrize("pipeline", registry.known_pipelines())
def test_every_family_names_the_classes_that_lead_to_it(pipeline: str) -> None:
    family = family_class(pipeline)
    assert family is not None
    assert pipeline in family.pipelines
    assert hasattr(diffusers, pipeline)
    assert family.defaults.steps > 0


def test_a_configuration_that_its_family_does_not_support_runs_by_its_own_call_and_the_status_says_why(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, "mismatch", classmethod(lambda _, __: "its UNet has feet"))
    told: list[tuple[EngineReason, str]] = []
    engine = load_engine(settings(folders("stable_diffusion")), lambda *stage: told.append(stage))
    assert isinstance(engine, PipelineEngine)
    why = "StableDiffusionPipeline is known, but its UNet has feet"
    assert (EngineReason.READY, f"the worker takes jobs, by the pipeline's own call: {why}") in told


def test_a_subclass_has_a_call_of_its_own(folders: Callable[[str], Path]) -> None:
    class StableDiffusionPipeline(diffusers.StableDiffusionPipeline):
        pass

    pipeline = StableDiffusionPipeline.from_pretrained(folders("stable_diffusion"), local_files_only=True)
    assert family_of(pipeline) == Unsupported("no family knows StableDiffusionPipeline")


def test_a_field_without_effect_is_named(folders: Callable[[str], Path]) -> None:
    family = family_of(diffusers.DiffusionPipeline.from_pretrained(folders("flux"), local_files_only=True))
    assert isinstance(family, ModelFamily)
    request = image_request(0, "a cat", "a dog", guidance=4.0)
    assert family.guidance(request) is GuidanceKind.NONE
    assert family.ignored(request) == [
        "negativePrompt has no effect: FluxPipeline does not heed it",
        "guidanceScale has no effect: this FluxPipeline takes none",
    ]
    assert family.ignored(image_request(0, guidance=0.0)) == []
