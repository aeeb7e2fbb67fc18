"""What would fail every job is found when the model is loaded, in either engine and on a CPU too."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from census import registry
from kubediffusion.resources.conditions import EngineReason
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.continuous import NAME as CONTINUOUS
from kubediffusion.worker.execution.generic import NAME as STATIC
from unit.worker.worker_builders import settings

STEPPED = "stable-diffusion"
CALLED = "longcat-image"


@pytest.mark.parametrize("part", ["vae", "denoiser"])
@pytest.mark.parametrize("name", [STEPPED, CALLED])
def test_weights_that_make_no_numbers_are_no_model(name: str, part: str, tmp_path: Path) -> None:
    """As of a download that was cut and padded, or of a merge that overflowed."""
    folder = tmp_path / "model"
    shutil.copytree(registry.folder(name), folder)
    component = part if part == "vae" else next(p.name for p in folder.iterdir() if p.name in {"unet", "transformer"})
    for file in (folder / component).glob("*.safetensors"):
        save_file({key: torch.full_like(tensor, math.nan) for key, tensor in load_file(file).items()}, file)
    with pytest.raises(BadModelError, match="made no image from text when it was tried: InvalidImage"):
        load_engine(settings(folder))


OUTPUTS: dict[str, Any] = {
    "nothing": lambda: None,
    "no images": lambda: SimpleNamespace(images=[]),
    "a text": lambda: SimpleNamespace(images=["a photo"]),
    "a vector": lambda: SimpleNamespace(images=[np.zeros(64)]),
    "channels first": lambda: SimpleNamespace(images=[np.zeros((3, 64, 64))]),
    "a film": lambda: SimpleNamespace(images=[np.zeros((8, 64, 64, 3))]),
    "too many": lambda: SimpleNamespace(images=[np.zeros((64, 64, 3))] * 2),
    "another field": lambda: SimpleNamespace(frames=[np.zeros((64, 64, 3))]),
    "infinite": lambda: SimpleNamespace(images=[np.full((64, 64, 3), np.inf)]),
}


@pytest.mark.parametrize("made", OUTPUTS)
def test_what_a_call_gives_that_is_no_image_is_no_model(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = diffusers.LongCatImagePipeline.__call__

    @functools.wraps(own)
    def call(*_: Any, **_options: Any) -> Any:
        return OUTPUTS[made]()

    monkeypatch.setattr(diffusers.LongCatImagePipeline, "__call__", call)
    with pytest.raises(
        BadModelError, match=r"made no image from text when it was tried: (PipelineFailed|InvalidImage)"
    ):
        load_engine(settings(registry.folder(CALLED)))


BAD_DEFAULTS: list[tuple[str, dict[str, Any]]] = [
    (STEPPED, {"scheduler": "FlowMatchEulerDiscreteScheduler"}),
    (CALLED, {"scheduler": "DDIMScheduler"}),
    (CALLED, {"acceleration": {"featureCaching": {"interval": 2}}}),
]


@pytest.mark.parametrize(("name", "defaults"), BAD_DEFAULTS)
def test_defaults_that_fail_every_job_which_takes_them_are_no_model(name: str, defaults: dict[str, Any]) -> None:
    with pytest.raises(BadModelError, match=r"^with spec.defaults \w+Pipeline made no image .*: PipelineFailed: "):
        load_engine(settings(registry.folder(name), defaults=defaults))


def test_defaults_with_a_schedule_that_a_pipeline_refuses_are_no_model(
    folders: Callable[[str], Path],
) -> None:
    """Latent consistency has fifty steps at most, which a trial in few steps does not meet."""
    with pytest.raises(BadModelError, match=r"^with spec.defaults LatentConsistencyModelPipeline"):
        load_engine(settings(folders("latent_consistency"), defaults={"numInferenceSteps": 60}))


@pytest.mark.parametrize(("name", "engine"), [(STEPPED, CONTINUOUS), (CALLED, STATIC)])
def test_a_sound_model_tells_that_it_was_tried(name: str, engine: str) -> None:
    told: list[EngineReason] = []
    sound = {"numInferenceSteps": 4, "guidanceScale": 3.0, "negativePrompt": "blurry", "width": 64, "height": 64}
    loaded = load_engine(settings(registry.folder(name), defaults=sound), lambda reason, _: told.append(reason))
    assert loaded.info.name == engine
    assert EngineReason.WARMING_UP in told
