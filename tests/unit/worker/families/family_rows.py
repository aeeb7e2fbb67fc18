"""One row for each pipeline of each family: the tiny model, and what its own call is told of a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import diffusers

from census.registry import folder
from census.weights import randomised
from kubediffusion.worker.engine import ImageRequest
from unit.worker.families.parity import FamilyRow

SCHEDULERS = ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
"""Schedulers of Stable Diffusion that are linear."""


def saved(name: str) -> Any:
    """Load the tiny model of a name. Components that its index names as null are passed, as the worker does."""
    index = json.loads((folder(name) / "model_index.json").read_text())
    absent = {component: None for component, value in index.items() if value == [None, None]}
    return diffusers.DiffusionPipeline.from_pretrained(folder(name), local_files_only=True, **absent)


def undistilled_flux() -> Any:
    """Build a FLUX.1 whose transformer is not told the guidance scale, and whose schedule is shifted by size."""
    # Late: the registry imports the builders, not they it.
    from census.builders import flux

    parts = flux.parts(transformer=flux.transformer(guidance_embeds=False))
    for name in ("vae", "text_encoder", "text_encoder_2", "transformer"):
        randomised(parts[name], name)
    return diffusers.FluxPipeline(**parts)


def scale_alone(request: ImageRequest) -> Mapping[str, Any]:
    """Pass the guidance scale: there is no negative prompt, or it has no effect."""
    return {"guidance_scale": request.sampling.guidance}


def true_scale(request: ImageRequest) -> Mapping[str, Any]:
    """Pass the guidance scale as that of true guidance, which needs a negative prompt."""
    return {"true_cfg_scale": request.sampling.guidance, "negative_prompt": request.negative_prompt}


def true_scale_always(request: ImageRequest) -> Mapping[str, Any]:
    """Pass the guidance scale as that of true guidance, with an empty negative prompt where there is none."""
    return {"true_cfg_scale": request.sampling.guidance, "negative_prompt": request.negative_prompt or ""}


def usual(request: ImageRequest) -> Mapping[str, Any]:
    """Pass guidance scale and negative prompt by the names that most pipelines give them."""
    return {"guidance_scale": request.sampling.guidance, "negative_prompt": request.negative_prompt}


ROWS = [
    FamilyRow("stable-diffusion", usual, (50, 7.5, True, True), schedulers=SCHEDULERS),
    FamilyRow("stable-diffusion-2", usual, (50, 7.5, True, True), schedulers=SCHEDULERS),
    FamilyRow("stable-diffusion-xl", usual, (50, 7.5, True, True), schedulers=SCHEDULERS),
    FamilyRow("stable-diffusion-3", usual, (28, 7.0, True, True)),
    FamilyRow("stable-diffusion-3-without-t5", usual, (28, 7.0, True, True)),
    FamilyRow("stable-diffusion-3.5", usual, (28, 4.5, True, True)),
    FamilyRow("flux-dev", scale_alone, (28, 3.5, True, False)),
    FamilyRow("flux-schnell", scale_alone, (4, 0.0, False, False)),
    FamilyRow("flux-undistilled", true_scale_always, (28, 3.5, True, True), build=undistilled_flux),
    FamilyRow("flux-2", scale_alone, (50, 4.0, True, False)),
    FamilyRow("flux-2-klein", scale_alone, (4, 1.0, False, False)),
    FamilyRow("flux-2-klein-base", scale_alone, (50, 4.0, True, False)),
    # One step has no place for the sigma that its schedule ends with.
    FamilyRow("qwen-image", true_scale, (50, 4.0, True, True), steps=(2, 4, 9)),
    FamilyRow("z-image-turbo", usual, (9, 0.0, True, True)),
    FamilyRow("krea-2", usual, (28, 4.5, True, True)),
    FamilyRow("chroma", usual, (35, 5.0, True, True)),
    FamilyRow("ovis-image", usual, (50, 5.0, True, True)),
    FamilyRow("ernie-image", usual, (50, 4.0, True, True)),
    FamilyRow("aura-flow", usual, (50, 3.5, True, True)),
]
