"""What families of flow matching have in common: their noise schedules."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np


def shift_by_size(
    scheduler: Any,
    tokens: int,
    *,
    tokens_range: tuple[int, int] = (256, 4096),
    shift_range: tuple[float, float] = (0.5, 1.15),
) -> float:
    """Return the shift of a schedule for an image's size, on a line through two points.

    It is ``calculate_shift`` of diffusers' pipelines.

    Args:
        scheduler: The noise scheduler, whose configuration may name the two points.
        tokens: Tokens of the image.
        tokens_range: Tokens of the smallest and the largest image, where the configuration names none.
        shift_range: Shift of the smallest and the largest image, where the configuration names none.
    """
    config = scheduler.config
    first, last = config.get("base_image_seq_len", tokens_range[0]), config.get("max_image_seq_len", tokens_range[1])
    low, high = config.get("base_shift", shift_range[0]), config.get("max_shift", shift_range[1])
    slope = (high - low) / (last - first)
    return float(tokens * slope + (low - slope * first))


def flow_schedule(scheduler: Any, steps: int, *, mu: float, own_sigmas: bool = False) -> dict[str, Any]:
    """Return the arguments of a flow-matching scheduler's ``set_timesteps``.

    Args:
        scheduler: The noise scheduler.
        steps: Denoising steps.
        mu: Shift of the schedule, where the scheduler shifts by it.
        own_sigmas: Whether the scheduler spaces the sigmas by itself.
    """
    if own_sigmas or getattr(scheduler.config, "use_flow_sigmas", False):
        arguments: dict[str, Any] = {"num_inference_steps": steps}
    else:
        arguments = {"sigmas": np.linspace(1.0, 1 / steps, steps)}
    if "mu" in inspect.signature(scheduler.set_timesteps).parameters:
        arguments["mu"] = mu
    return arguments
