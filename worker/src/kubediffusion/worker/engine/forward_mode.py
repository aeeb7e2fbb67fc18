"""What each call of the model computes: the whole, unless an image trades quality for speed.

Two ways to save, both off by default and named in the recipe:

- *guidance in an interval* of the calls: outside it the prompt's row is computed alone, at half the cost. Guidance
  harms where there is still nothing to see, and hardly matters at the end (Kynkäänniemi et al., 2024,
  https://arxiv.org/abs/2404.07724). The interval is a fraction of the calls, as in diffusers' guiders;
- *feature caching* between calls: what the UNet's deep layers give changes slowly, so every N-th call computes them
  and those in between reuse it (Ma et al., 2023, https://arxiv.org/abs/2312.00858; here uniform, and cut at the first
  branch).

Calls are steps, but for schedulers that call the model more often.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kubediffusion.resources.generation_job import Acceleration


class Features(Enum):
    """What a call does with the features of the denoiser's deep layers."""

    FULL = "full"
    """It computes them, and keeps nothing."""
    REFRESH = "refresh"
    """It computes them, and keeps them."""
    REUSE = "reuse"
    """It computes the outermost layers alone, on what was kept."""


@dataclass(frozen=True)
class ForwardMode:
    """What one call computes.

    Attributes:
        features: What it does with the deep layers' features.
        prompt_only: The prompt's row alone, where there is a negative prompt's too.
        adapters: Number of the set of layers to which images' adapters are added; 0 where no image has any. A plan
            leaves it at 0: it is the executor's, which knows what its slots hold.
    """

    features: Features = Features.FULL
    prompt_only: bool = False
    adapters: int = 0


FULL = ForwardMode()


def forward_modes(acceleration: Acceleration, calls: int, *, guided: bool) -> tuple[ForwardMode, ...]:
    """Choose what each call computes.

    Args:
        acceleration: What is saved.
        calls: How often the model is called.
        guided: Whether there is guidance to leave out.
    """
    interval = acceleration.guidance_interval if guided else None
    period = acceleration.feature_caching.interval if acceleration.feature_caching is not None else 1
    chosen: list[ForwardMode] = []
    kept_prompt_only = False
    for call in range(calls):
        prompt_only = interval is not None and not interval.start <= call / calls < interval.stop
        if period == 1:
            features = Features.FULL
        elif call % period == 0 or (kept_prompt_only and not prompt_only):
            # The latter where guidance begins between two of the whole: nothing is kept for the negative prompt.
            features, kept_prompt_only = Features.REFRESH, prompt_only
        else:
            features = Features.REUSE
        chosen.append(ForwardMode(features, prompt_only))
    return tuple(chosen)
