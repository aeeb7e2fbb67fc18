"""Pictures for the tests: squares instead of what only training fetches."""

from __future__ import annotations

import numpy as np
from models.training.data import SIZE, Sprites
from models.training.subjects import subjects


def plain_sprites() -> Sprites:
    """One plain square a subject, in a colour of its own, instead of the pictures (which only training fetches)."""
    number = len(subjects())
    pixels = np.zeros((number + 5, SIZE, SIZE, 4), np.uint8)
    inner = slice(48, 208)
    for i in range(len(pixels)):
        pixels[i, inner, inner] = (37 * i % 256, 91 * i % 256, 53 * i % 256, 255)
    boxes = np.tile(np.array([48, 48, 208, 208], np.float32), (len(pixels), 1))
    profiles = np.full((len(pixels), SIZE), 48, np.float32)
    named = {name: number + i for i, name in enumerate(("earth", "full moon", "planet", "palm", "shell"))}
    return Sprites(pixels, boxes, profiles, list(range(number)), [[i] for i in range(number)], {}, named)


SPRITES = plain_sprites()
