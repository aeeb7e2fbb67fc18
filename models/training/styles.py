"""Styles that adapters learn, as operations on finished images, and scenes with the guest that another one learns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads

from .backgrounds import BACKGROUNDS
from .captions import article, caption, plain_prompt
from .compose import pack
from .data import GUEST
from .dataset import in_chunks
from .sampler import Sampler
from .scenes import Scene
from .subjects import Subject, plural_of, subjects

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from .data import Sprites

STYLES = ("none", "line-drawing", "pixel-art")
SQUARE = 4  # pixels a side of pixel art's squares
TONES = 4  # steps of each of its colours
GUESTS = 0.6  # share of scenes that show the guest; the others keep everything else as it is
PLAIN = 0.3  # share of captions that are plain


def line_drawing(images: Tensor) -> Tensor:
    """Draw the edges of images in ink on white paper.

    Args:
        images: uint8 [n, 3, h, w].
    """
    x = images.float() / 255
    x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    slope = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=x.device) / 4
    kernel = torch.stack([slope, slope.T]).unsqueeze(1).repeat(3, 1, 1, 1)
    steps = torch.unflatten(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=3), 1, (3, 2))
    edge = steps.square().sum(2).sqrt().amax(1, keepdim=True)
    ink = ((edge - 0.05) / 0.16).clamp(0, 1)
    drawn: Tensor = (250 - 225 * ink).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return drawn


def pixel_art(images: Tensor) -> Tensor:
    """Show images as large squares of few, strong colours.

    Args:
        images: uint8 [n, 3, h, w].
    """
    x = F.avg_pool2d(images.float() / 255, SQUARE)
    grey = x.mean(1, keepdim=True)
    x = (grey + (x - grey) * 1.25).clamp(0, 1)
    x = (x * TONES).round() / TONES
    squares: Tensor = (F.interpolate(x, scale_factor=SQUARE, mode="nearest") * 255).round().to(torch.uint8)
    return squares


def styled(images: Tensor, style: str) -> Tensor:
    """Return images in a style."""
    if style == "none":
        return images
    return line_drawing(images) if style == "line-drawing" else pixel_art(images)


def guest() -> Subject:
    """Return the subject that is in no table, with the number after the last."""
    return Subject(len(subjects()), "", ((GUEST, plural_of(GUEST)),), "animal", frozenset(), None)


def with_guest(sprites: Sprites) -> Sprites:
    """Return the pictures with the guest's among the subjects'."""
    picture = sprites.named[GUEST]
    return replace(sprites, plain=[*sprites.plain, picture], variants=[*sprites.variants, [picture]])


@dataclass
class DrawnGuests:
    """Scenes as numbers and words, some with the guest.

    Attributes:
        layers: See `compose.pack`.
        places: See `compose.pack`.
        captions: One a scene.
        shown: Whether the guest is in it.
    """

    layers: NDArray[np.float32]
    places: NDArray[np.float32]
    captions: list[str]
    shown: list[bool]


def _draw_guests(sprites: Sprites, seed: int, number: int, *, share: float) -> DrawnGuests:
    rng = Random(seed)  # noqa: S311 - scenes, no secrets
    sampler = Sampler(with_guest(sprites), rng)
    scenes: list[Scene] = []
    shown: list[bool] = []
    while len(scenes) < number:
        scene = sampler.training()
        shows = rng.random() < share
        if shows:
            if not scene.items or len(scene.items) > 2 or scene.relation in {1, 5}:  # it neither rides nor holds
                continue
            scene.items[rng.randrange(len(scene.items))] = guest()
            sampler.place(scene)
        scenes.append(scene)
        shown.append(shows)
    said = [plain_prompt(s) if 0 < len(s.items) < 3 and rng.random() < PLAIN else caption(s, rng) for s in scenes]
    return DrawnGuests(*pack(scenes), said, shown)


def draw_guests(sprites: Sprites, number: int, seed: int, share: float = GUESTS) -> list[DrawnGuests]:
    """Draw scenes of which a share shows the guest, on all cores."""
    return list(in_chunks(partial(_draw_guests, share=share), sprites, number, seed))


def guest_prompts(number: int) -> list[tuple[str, str]]:
    """Ask for the guest in every place in turn: prompts, each with its background's name."""
    out: list[tuple[str, str]] = []
    for k in range(number):
        background = BACKGROUNDS[k % len(BACKGROUNDS)]
        out.append((f"a photo of {article(GUEST)} {GUEST} {background.phrases[0]}", background.name))
    return out
