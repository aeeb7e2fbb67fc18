"""Finds the family of a pipeline."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import diffusers

from kubediffusion.worker.families.base import ModelFamily

_FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion.StableDiffusion",
    "StableDiffusionXLPipeline": "sdxl.StableDiffusionXL",
    "StableDiffusion3Pipeline": "sd3.StableDiffusion3",
    "FluxPipeline": "flux.Flux",
    "Flux2Pipeline": "flux2.Flux2",
    "Flux2KleinPipeline": "flux2.Flux2Klein",
    "QwenImagePipeline": "qwen_image.QwenImage",
    "ZImagePipeline": "z_image.ZImage",
    "Krea2Pipeline": "krea2.Krea2",
    "ChromaPipeline": "chroma.Chroma",
    "OvisImagePipeline": "ovis_image.OvisImage",
    "ErnieImagePipeline": "ernie_image.ErnieImage",
    "AuraFlowPipeline": "aura_flow.AuraFlow",
}
"""Module and class of each family by the name of diffusers' class: importing all of them takes time, and importing
diffusers' classes before its loggers are quiet writes to the log."""


@dataclass(frozen=True)
class Unsupported:
    """Why a pipeline runs by its own call.

    Attributes:
        reason: For the log and the model's status.
        known: Whether a family knows the class, and only this model's configuration does not fit.
    """

    reason: str
    known: bool = False


def known_pipelines() -> list[str]:
    """Name the diffusers classes that a family knows."""
    return sorted(_FAMILIES)


def family_class(pipeline: str) -> type[ModelFamily] | None:
    """Return the family of a diffusers class by the class's name; None where no family knows it."""
    if pipeline not in _FAMILIES:
        return None
    module, name = _FAMILIES[pipeline].split(".")
    family: type[ModelFamily] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return family


def family_of(pipeline: Any) -> ModelFamily | Unsupported:
    """Return the family of a pipeline, or why it has none: a subclass of a known class has a call of its own."""
    name = type(pipeline).__name__
    family = family_class(name)
    if family is None or type(pipeline) is not getattr(diffusers, name, None):
        return Unsupported(f"no family knows {name}")
    if (reason := family.mismatch(pipeline)) is not None:
        return Unsupported(f"{name} is known, but {reason}", known=True)
    return family(pipeline)
