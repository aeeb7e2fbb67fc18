"""Scenes on canvases that are no squares: what is drawn for a square moves as a group, and keeps its proportions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .backgrounds import BACKGROUNDS

if TYPE_CHECKING:
    from random import Random

    from .data import Sprites
    from .scenes import Layer, Scene

_SIDES = {"left": (0.0, 0.25), "right": (0.75, 1.0), "": (0.15, 0.85)}
"""Shares of the room to the left of the group that captions call so."""


def spread(scene: Scene, sprites: Sprites, width: float, height: float, rng: Random) -> None:
    """Move a scene's layers from the unit square to a larger canvas.

    Subjects move together, so that riders stay on their mounts. They stay at the lower edge, where their ground is,
    or float in the middle. Scenery (the earth, the moon, a palm) moves to the same share of the width.

    Args:
        scene: Its layers change.
        sprites: The pictures, to tell scenery from subjects.
        width: Of the canvas, in lengths of its shorter side.
        height: Of the canvas, alike.
        rng: Source of chance.
    """
    if width == height:
        return
    scenery = set(sprites.named.values())
    floats = BACKGROUNDS[scene.background].free
    dx = (width - 1) * rng.uniform(*_SIDES[scene.side])
    dy = (height - 1) * (rng.uniform(0.35, 0.65) if floats else 1.0)

    def moved(layer: Layer) -> Layer:
        if layer.sprite in scenery:
            stands = layer.y > 0.35  # a palm does, the earth and the moon hang
            x, y = layer.x * (width - 1), (height - 1) if stands else 0.0
        else:
            x, y = dx, dy
        left, top, right, bottom = layer.box
        return replace(layer, x=layer.x + x, y=layer.y + y, box=(left + x, top + y, right + x, bottom + y))

    scene.layers = [moved(layer) for layer in scene.layers]
