"""Puts a pipeline where its memory plan says: on the device, or in main memory to come when it is needed."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled, apply_group_offloading

from kubediffusion.resources.model_source import Quantization
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.loading.files import DENOISERS
from kubediffusion.worker.loading.memory_needs import TILE
from kubediffusion.worker.loading.memory_plan import MemoryPlan
from kubediffusion.worker.loading.quantization import quantized_components

_MOVABLE = frozenset({Quantization.FLOAT8, Quantization.INT8})
"""Weights in fewer bits that diffusers knows how to move."""

_TILE_SIDE = int(TILE**0.5)


def place(pipeline: Any, plan: MemoryPlan, device: torch.device) -> Any:
    """Put a pipeline that is in main memory where a plan says, and return it.

    Args:
        pipeline: The pipeline.
        plan: The plan.
        device: What computes.

    Raises:
        BadModelError: A component's weights cannot come when they are needed.
    """
    if plan.tiled:
        _tile(pipeline)
    if not plan.offloads:
        return pipeline.to(device)
    held = quantized_components(pipeline)
    for name, module in pipeline.components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        if name in DENOISERS and plan.groups_offloaded:
            _check_movable("groupOffload", name, module, held.get(name))
            apply_group_offloading(module, device, offload_type="block_level", num_blocks_per_group=1)
        elif name.startswith("text_encoder") and plan.text_encoders_offloaded:
            _check_movable("textEncoderOffload", name, module, held.get(name))
            apply_group_offloading(module, device, offload_type="leaf_level")
        else:
            module.to(device)
    return pipeline


def _check_movable(field: str, name: str, module: torch.nn.Module, held: str | None) -> None:
    reason = None
    if held is not None and held not in _MOVABLE:
        reason = f"in {held}"
    elif not getattr(module, "_supports_group_offloading", True):
        reason = f"of {type(module).__name__}"
    if reason is not None:
        raise BadModelError(
            f"spec.memory.{field}: weights {reason} cannot stay in main memory, as those of {name} are; set it to Auto "
            "or Never"
        )


def offloaded_components(pipeline: Any) -> list[str]:
    """Return the components whose weights stay in main memory."""
    parts = pipeline.components.items()
    return [name for name, part in parts if isinstance(part, torch.nn.Module) and _is_group_offload_enabled(part)]


def plan_of(pipeline: Any) -> MemoryPlan:
    """Return the plan by which a pipeline was placed, as it shows itself."""
    offloaded = offloaded_components(pipeline)
    return MemoryPlan(
        text_encoders_offloaded=any(name.startswith("text_encoder") for name in offloaded),
        tiled=bool(getattr(getattr(pipeline, "vae", None), "use_tiling", False)),
        groups_offloaded=any(name in DENOISERS for name in offloaded),
    )


def _tile(pipeline: Any) -> None:
    vae: Any = getattr(pipeline, "vae", None)
    # The mixin of all autoencoders has the method; those that cannot tile lack this.
    if not hasattr(vae, "use_tiling"):
        raise BadModelError(
            f"spec.memory.vaeTiling: {type(pipeline).__name__} cannot decode in tiles; set it to Auto or Never"
        )
    vae.enable_tiling()
    # By default a tile is as large as what the model was trained on.
    if (side := getattr(vae, "tile_sample_min_size", None)) is not None:
        vae.tile_latent_min_size = vae.tile_latent_min_size * _TILE_SIDE // side
        vae.tile_sample_min_size = _TILE_SIDE
