"""Chooses the numbers that a model's weights are held in."""

from __future__ import annotations

from typing import Any

import torch

from kubediffusion.resources.diffusion_model import TorchDtype
from kubediffusion.worker.families.registry import family_class

_DTYPES = {
    TorchDtype.FLOAT32: torch.float32,
    TorchDtype.FLOAT16: torch.float16,
    TorchDtype.BFLOAT16: torch.bfloat16,
}


def dtype_for(
    wish: TorchDtype, index: dict[str, Any], device: torch.device, stored: torch.dtype | None = None
) -> torch.dtype:
    """Choose the numbers that the weights are held in.

    Args:
        wish: What the model asks for.
        index: The model's ``model_index.json``.
        device: Where the weights go. A CPU is fastest with float32.
        stored: Numbers that the denoiser's weights are stored in; None where that is not known.
    """
    if wish is not TorchDtype.AUTO:
        return _DTYPES[wish]
    if device.type != "cuda":
        return torch.float32
    if stored in {torch.bfloat16, torch.float16}:
        return stored
    name = index.get("_class_name")
    family = family_class(name) if isinstance(name, str) else None
    if family is not None:
        return _DTYPES[TorchDtype(family.dtype)]
    # Transformers of images are trained in bfloat16; many of them overflow in float16.
    return torch.bfloat16 if "transformer" in index else torch.float16
