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
from kubediffusion.worker.pipeline.families import Frame


class Depth(Enum):
    """How much of the UNet is computed."""

    WHOLE = "whole"
    KEEPING = "keeping"
    """The whole, and what the deep layers gave is kept."""
    SHALLOW = "shallow"
    """The outermost layers, on what was kept."""


@dataclass(frozen=True)
class Variant:
    """What one call computes.

    Attributes:
        depth: How much of the UNet.
        prompt_only: The prompt's row alone, where there is a negative prompt's too.
    """

    depth: Depth = Depth.WHOLE
    prompt_only: bool = False


WHOLE = Variant()


@dataclass(frozen=True)
class Course:
    """What images have in common whose calls differ: they begin together, so that all need the same of each call.

    Attributes:
        frame: What all images of a batch share.
        acceleration: What is saved.
        scheduler: diffusers class; None for the pipeline's own.
        steps: Denoising steps.
    """

    frame: Frame
    acceleration: Acceleration
    scheduler: str | None
    steps: int


def variants(acceleration: Acceleration, calls: int, *, guided: bool) -> tuple[Variant, ...]:
    """Give what each call computes.

    Args:
        acceleration: What is saved.
        calls: How often the model is called.
        guided: Whether there is guidance to leave out.
    """
    interval = acceleration.guidance_interval if guided else None
    period = acceleration.feature_caching.interval if acceleration.feature_caching is not None else 1
    chosen: list[Variant] = []
    kept_prompt_only = False
    for call in range(calls):
        prompt_only = interval is not None and not interval.start <= call / calls < interval.stop
        if period == 1:
            depth = Depth.WHOLE
        elif call % period == 0 or (kept_prompt_only and not prompt_only):
            # The latter where guidance begins between two of the whole: nothing is kept for the negative prompt.
            depth, kept_prompt_only = Depth.KEEPING, prompt_only
        else:
            depth = Depth.SHALLOW
        chosen.append(Variant(depth, prompt_only))
    return tuple(chosen)
