"""Makes LoRA files for tiny models: random factors of low rank, in the formats that trainers write.

``python -m unit.worker.lora_files FOLDER FILE`` (with ``tests`` on the path) makes one for a diffusers folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import nn

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""By layer: ``[rank, inputs, ...]`` and ``[outputs, rank, ...]``."""

FORMATS: dict[str, tuple[str, str, str, bool]] = {
    "peft": ("{component}.{layer}", ".lora_A.weight", ".lora_B.weight", False),
    "diffusers": ("{component}.{layer}", ".lora.down.weight", ".lora.up.weight", False),
    "text": (
        "{component}.{layer}",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
        False,
    ),
    "kohya": ("{kohya}_{layer_}", ".lora_down.weight", ".lora_up.weight", True),
}
"""How a layer is named, what follows for each factor, and whether there is an alpha."""

_KOHYA = {"unet": "lora_unet", "transformer": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def factors(
    model: nn.Module,
    seed: int = 0,
    rank: int = 4,
    strength: float = 0.3,
    wanted: Callable[[str], bool] = lambda _: True,
) -> Factors:
    """Draw factors for each linear layer and convolution of a model whose name is wanted."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    window: tuple[int, ...]
    one: tuple[int, ...]
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            inputs, outputs, window, one = layer.in_features, layer.out_features, (), ()
        elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
            inputs, outputs, window, one = layer.in_channels, layer.out_channels, layer.kernel_size, (1, 1)
        else:
            continue
        if wanted(name):
            down = torch.randn(rank, inputs, *window, generator=generator) * strength / inputs**0.5
            drawn[name] = down, torch.randn(outputs, rank, *one, generator=generator) * strength
    return drawn


def weights(component: str, drawn: Factors, form: str = "peft", alpha: float | None = None) -> dict[str, torch.Tensor]:
    """Name the factors of a component as a trainer does.

    Args:
        component: The pipeline's component.
        drawn: Its factors.
        form: One of :data:`FORMATS`.
        alpha: What scales are written with, where the format has them; by default the rank, a scale of 1.
    """
    pattern, down, up, scaled = FORMATS[form]
    named: dict[str, torch.Tensor] = {}
    for own, (first, second) in drawn.items():
        layer = own
        if component.startswith("text_encoder"):
            # As CLIP's layers were called when these formats came up.
            layer = f"text_model.{own.removeprefix('text_model.')}"
        elif component == "transformer" and scaled:
            layer = _original(own)
        name = pattern.format(component=component, layer=layer, kohya=_KOHYA[component], layer_=layer.replace(".", "_"))
        named |= {name + down: first, name + up: second}
        if scaled:
            named[f"{name}.alpha"] = torch.tensor(float(len(first) if alpha is None else alpha))
    return {name: tensor.contiguous() for name, tensor in named.items()}


def save(path: Path, *parts: dict[str, torch.Tensor]) -> Path:
    """Save parts as one safetensors file."""
    save_file({name: tensor for part in parts for name, tensor in part.items()}, path)
    return path


_ORIGINAL = {
    r"single_transformer_blocks\.(\d+)\.proj_out": r"single_blocks.\1.linear2",
    r"transformer_blocks\.(\d+)\.attn\.to_out\.0": r"double_blocks.\1.img_attn.proj",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": r"double_blocks.\1.img_mlp.0",
}
"""FLUX.1's own names of some layers, which trainers write that are not diffusers'."""


def _original(layer: str) -> str:
    return next(re.sub(own, name, layer) for own, name in _ORIGINAL.items() if re.fullmatch(own, layer))


def has_original_name(layer: str) -> bool:
    """Return whether FLUX.1's own name of a layer is known here."""
    return any(re.fullmatch(own, layer) for own in _ORIGINAL)


def lora_of(pipeline: Any, path: Path, seed: int = 0, rank: int = 4) -> Path:
    """Save an adapter for every layer of a pipeline's denoiser."""
    component = "unet" if getattr(pipeline, "unet", None) is not None else "transformer"
    return save(path, weights(component, factors(getattr(pipeline, component), seed, rank)))


if __name__ == "__main__":
    folder, file = sys.argv[1:]
    lora_of(diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True), Path(file))
