"""Puts a pipeline where its memory plan says: on the device, or in main memory to come when it is needed."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled, apply_group_offloading

from kubediffusion.worker.loading.files import DENOISERS
from kubediffusion.worker.loading.memory_needs import TILE
from kubediffusion.worker.loading.memory_plan import MemoryPlan

_TILE_SIDE = int(TILE**0.5)


def place(pipeline: Any, plan: MemoryPlan, device: torch.device) -> Any:
    """Put a pipeline that is in main memory where a plan says, and return it.

    Args:
        pipeline: The pipeline.
        plan: The plan.
        device: What computes.
    """
    if plan.tiled:
        _tile(pipeline)
    if not plan.offloads:
        return pipeline.to(device)
    for name, module in pipeline.components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        if name in DENOISERS and plan.groups_offloaded:
            apply_group_offloading(module, device, offload_type="block_level", num_blocks_per_group=1)
        elif name.startswith("text_encoder") and plan.text_encoders_offloaded:
            apply_group_offloading(module, device, offload_type="leaf_level")
        else:
            module.to(device)
    return pipeline


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
    if not hasattr(vae, "enable_tiling"):
        return
    vae.enable_tiling()
    # By default a tile is as large as what the model was trained on.
    if (side := getattr(vae, "tile_sample_min_size", None)) is not None:
        vae.tile_latent_min_size = vae.tile_latent_min_size * _TILE_SIDE // side
        vae.tile_sample_min_size = _TILE_SIDE
