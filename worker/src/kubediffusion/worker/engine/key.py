"""What images must have in common to share a step. Values; no torch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

from kubediffusion.resources.generation_job import Acceleration


class GuidanceKind(Enum):
    """What a guidance scale does to an image. Its value is in no key: images of one batch may differ in it."""

    NONE = "none"
    """Nothing: one row an image."""
    EMBEDDED = "embedded"
    """The denoiser is told it: one row an image."""
    CFG = "cfg"
    """It weighs the output for the prompt against that for the negative prompt: two rows an image."""


@dataclass(frozen=True)
class BatchKey:
    """What all images of a running batch share.

    Attributes:
        width: Pixels.
        height: Pixels.
        guidance: What the guidance scale does, which decides the rows.
        deterministic: Computed alone and always in the same way.
        text_length: Tokens that each prompt has room for; 0 where the family's prompts are all as long.
    """

    width: int
    height: int
    guidance: GuidanceKind
    deterministic: bool = False
    text_length: int = 0

    @property
    def guided(self) -> bool:
        """Whether an image has a row for its negative prompt."""
        return self.guidance is GuidanceKind.CFG


@dataclass(frozen=True)
class LockstepKey:
    """What images share that run in lockstep: what they compute differs from call to call, so they begin together.

    Attributes:
        batch: What all images of a batch share.
        acceleration: What is saved.
        scheduler: diffusers class; None for the pipeline's own.
        steps: Denoising steps.
        strength: How much of an input image is made anew, which decides where they begin; None where there is none.
    """

    batch: BatchKey
    acceleration: Acceleration
    scheduler: str | None
    steps: int
    strength: float | None = None


def tensors_of(key: Hashable) -> Hashable:
    """Return the key of the tensors that hold a batch. Two batches in the same tensors cannot run side by side."""
    return key.batch if isinstance(key, LockstepKey) else key
