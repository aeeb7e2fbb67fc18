"""What families of flow matching have in common: tokens of a square of latents, and noise schedules."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from kubediffusion.worker.engine import BatchKey
from kubediffusion.worker.families.base import ModelFamily


class FlowFamily(ModelFamily):
    """A family whose sigmas fall evenly from 1 to ``1 / steps``, shifted by the image's size: see :class:`ModelFamily`.

    A family overrides :meth:`token_side` and :meth:`shift` where its pipeline differs.
    """

    def token_side(self) -> int:
        """Return the side of a token in pixels: two latents by default."""
        return int(2 * self.pipeline.vae_scale_factor)

    def size_grid(self) -> int:
        """Return the side of a token: an image of another size would be rounded to whole tokens."""
        return self.token_side()

    def grid(self, key: BatchKey) -> tuple[int, int]:
        """Return the height and width of an image in tokens."""
        side = self.token_side()
        return key.height // side, key.width // side

    def shift(self, scheduler: Any, key: BatchKey, _steps: int) -> float:
        """Return the shift of the schedule, ``mu``, where the scheduler shifts by it."""
        height, width = self.grid(key)
        return shift_by_size(scheduler, height * width)

    def schedule(self, scheduler: Any, key: BatchKey, steps: int) -> dict[str, Any]:
        """Return the arguments of ``set_timesteps``: see :meth:`ModelFamily.schedule`."""
        return flow_schedule(scheduler, steps, mu=self.shift(scheduler, key, steps))


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
