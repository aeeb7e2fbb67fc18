"""What is in a scene and where: drawn at random on the CPU, as numbers that the composer turns into pixels.

Lengths are fractions of the canvas, x to the right and y downwards. Everything follows from a `random.Random`, so a
seed gives the same scenes on every machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .backgrounds import BACKGROUNDS
from .data import SIZE
from .subjects import Subject

if TYPE_CHECKING:
    from collections.abc import Sequence


RELATIONS = ("none", "riding", "next to", "above", "under", "holding", "in front of", "behind")
MAX_LAYERS = 6
SEAT = (134 / SIZE, 161 / SIZE)  # where the seated pictures sit, see data.with_legs

# The demo's scene, drawn a little more often than chance would (the model card says so).
STAR = ("astronaut", "riding", "horse", "moon")


@dataclass
class Layer:
    """One picture on the canvas.

    Attributes:
        sprite: Which picture.
        x: Centre of the picture's square.
        y: Centre of the picture's square.
        size: Side of the picture's square.
        flip: Mirrored, so that it looks to the right.
        angle: Rotation in radians.
        hue: Rotation of the hue, in turns.
        saturation: Factor on the colour's distance from grey.
        light: Factor on the brightness.
        shadow: Strength of the contact shadow under it, 0 for none.
        box: Opaque part (left, top, right, bottom) on the canvas, before rotation.
    """

    sprite: int
    x: float
    y: float
    size: float
    flip: bool
    angle: float = 0.0
    hue: float = 0.0
    saturation: float = 1.0
    light: float = 1.0
    shadow: float = 0.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def moved(self, factor: float, x0: float, y0: float) -> Layer:
        """Return it scaled about a point."""
        left, top, right, bottom = self.box
        return replace(
            self,
            x=x0 + (self.x - x0) * factor,
            y=y0 + (self.y - y0) * factor,
            size=self.size * factor,
            box=(
                x0 + (left - x0) * factor,
                y0 + (top - y0) * factor,
                x0 + (right - x0) * factor,
                y0 + (bottom - y0) * factor,
            ),
        )


@dataclass
class Scene:
    """A scene: what a caption may say of it, and where everything goes.

    Attributes:
        background: Index into `BACKGROUNDS`.
        horizon: Where the ground begins.
        items: The subjects; for a relation, the first does it to the second.
        relation: Index into `RELATIONS`.
        count: How many there are of a single subject.
        size: "small", "large" or "".
        side: "left", "right" or "".
        layers: The pictures, back to front.
    """

    background: int
    horizon: float
    items: list[Subject]
    relation: int = 0
    count: int = 1
    size: str = ""
    side: str = ""
    layers: list[Layer] = field(default_factory=list)


def _share(*parts: str) -> int:
    """Hash words to 0..99, alike on every machine."""
    return int.from_bytes(hashlib.blake2s("|".join(parts).encode(), digest_size=4).digest(), "big") % 100


def held_out(items: Sequence[Subject], background: int) -> bool:
    """Say whether a combination is kept from training, for the scores.

    One pair of subjects in ten is never seen together in any relation or background, and one combination of subject and
    background in ten is never seen with any count. Only scenes of exactly one kind of subject, or of two, are held out.

    Args:
        items: The subjects of a scene.
        background: Index into `BACKGROUNDS`.
    """
    names = sorted(subject.name for subject in items)
    if STAR[0] in names and STAR[2] in names:
        return False
    if len(names) == 2:
        return _share(*names) < 10
    if len(names) == 1:
        return _share(names[0], BACKGROUNDS[background].name) < 10
    return False
