"""What a recipe must give: shared by the stand-in engine, which draws it, and the checker, which expects it."""

from __future__ import annotations

import hashlib
import json

SIDE = 16
"""Pixels of a side where a recipe names none."""
POISON = "poison"
"""What the prompt of a job ends with whose worker exits when it has run three quarters of the job's steps."""
POISONED_EXIT_CODE = 86
"""What that worker exits with."""


def pixels(prompt: str, negative: str | None, seed: int, steps: int, guidance: float, width: int, height: int) -> bytes:
    """Return ``height * width * 3`` bytes that each part of the recipe decides."""
    recipe = json.dumps([prompt, negative, seed, steps, guidance, width, height])
    return hashlib.shake_128(recipe.encode()).digest(width * height * 3)


def rounded(rgb: bytes, process: str) -> bytes:
    """Change the lowest bit of some bytes as another process would: what a device's rounding does to real pixels.

    Without it every attempt would give the same file, and none could be told from a later one that replaced it.
    """
    noise = hashlib.shake_128(process.encode()).digest(len(rgb))
    return bytes(value ^ (bit & 1) for value, bit in zip(rgb, noise, strict=True))


def alike(one: bytes, other: bytes) -> bool:
    """Return whether two pictures differ by rounding only."""
    return len(one) == len(other) and all(a >> 1 == b >> 1 for a, b in zip(one, other, strict=True))
