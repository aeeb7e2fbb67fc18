"""Turns scenes into pixels, hundreds at once, on whatever device torch is given."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads

from .backgrounds import BACKGROUNDS
from .brush import Brush
from .data import SIZE
from .scenes import MAX_LAYERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from .data import Sprites
    from .scenes import Scene

FIELDS = 12  # numbers a layer: sprite, x, y, size, flip, angle, hue, saturation, light, shadow, foot x, foot y


def pack(scenes: Sequence[Scene]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Write scenes as numbers.

    Returns:
        Layers [n, MAX_LAYERS, FIELDS], a sprite of -1 where there is none; and [n, 2] of background and horizon.
    """
    layers = np.zeros((len(scenes), MAX_LAYERS, FIELDS), np.float32)
    layers[..., 0] = -1
    places = np.zeros((len(scenes), 2), np.float32)
    for i, scene in enumerate(scenes):
        places[i] = scene.background, scene.horizon
        for j, item in enumerate(scene.layers[:MAX_LAYERS]):
            left, _, right, bottom = item.box
            layers[i, j] = (
                item.sprite, item.x, item.y, item.size, item.flip, item.angle, item.hue, item.saturation, item.light,
                item.shadow, (left + right) / 2, bottom,
            )  # fmt: skip
    return layers, places


class Composer:
    """Paints backgrounds, shadows and pictures.

    Args:
        sprites: The pictures.
        device: Where to work.
        size: Shorter side of the scenes in pixels, which is what lengths are fractions of.
        width: Width of the scenes, where they are no squares.
        height: Height of the scenes, alike.
    """

    def __init__(
        self,
        sprites: Sprites,
        device: torch.device | str,
        size: int = 256,
        width: int | None = None,
        height: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.size, self.width, self.height = size, width or size, height or size
        half = torch.float16 if self.device.type == "cuda" else torch.float32
        rgba = torch.from_numpy(sprites.pixels).to(self.device).permute(0, 3, 1, 2)
        atlas = torch.zeros(len(rgba), 4, SIZE, SIZE * 3 // 2, dtype=half, device=self.device)
        for i in range(0, len(rgba), 64):  # premultiplied alpha; levels of 256, 128 and 64 pixels side by side
            full = rgba[i : i + 64].float() / 255
            full = torch.cat([full[:, :3] * full[:, 3:], full[:, 3:]], 1)
            atlas[i : i + 64, :, :, :SIZE] = full.to(half)
            atlas[i : i + 64, :, : SIZE // 2, SIZE:] = F.avg_pool2d(full, 2).to(half)
            atlas[i : i + 64, :, SIZE // 2 : SIZE * 3 // 4, SIZE : SIZE * 5 // 4] = F.avg_pool2d(full, 4).to(half)
        self.atlas = atlas
        line = (torch.arange(max(self.width, self.height), device=self.device, dtype=torch.float32) + 0.5) / size
        self.x, self.y = line[: self.width].view(1, 1, -1), line[: self.height].view(1, -1, 1)
        self.light = torch.tensor([b.light for b in BACKGROUNDS], device=self.device)

    @torch.no_grad()
    def __call__(self, layers: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
        """Compose scenes.

        Args:
            layers: What `pack` returned, on any device.
            places: What `pack` returned, on any device.
            generator: Source of chance for the backgrounds, on the composer's device.

        Returns:
            uint8 [n, 3, height, width].
        """
        layers, places = layers.to(self.device), places.to(self.device)
        image = self._backgrounds(places, generator)
        tint = self.light[places[:, 0].long()].view(-1, 3, 1, 1)
        for j in range(layers.shape[1]):
            rows = torch.nonzero(layers[:, j, 0] >= 0).squeeze(1)
            if len(rows):
                image[rows] = self._draw(image[rows], layers[rows, j], tint[rows])
        return (image * 255 + 0.5).clamp(0, 255).to(torch.uint8)

    def _backgrounds(self, places: Tensor, generator: torch.Generator) -> Tensor:
        kinds = places[:, 0].long()
        side = max(self.width, self.height)
        image = torch.empty(len(places), 3, self.height, self.width, device=self.device)
        for kind in torch.unique(kinds).tolist():
            rows = torch.nonzero(kinds == kind).squeeze(1)
            painted = BACKGROUNDS[kind].paint(Brush(places[rows, 1], side, generator))
            image[rows] = self._cut(painted, places[rows, 1])
        return image

    def _cut(self, painted: Tensor, horizon: Tensor) -> Tensor:
        """Cut the canvas out of a painted square of its longer side; the horizon keeps its share of the height."""
        if self.width == self.height:
            return painted
        left = (painted.shape[3] - self.width) // 2
        top = (horizon.clamp(0, 1) * (painted.shape[2] - self.height)).long()
        lines = top.view(-1, 1) + torch.arange(self.height, device=painted.device)
        index = lines.view(-1, 1, self.height, 1).expand(-1, 3, -1, painted.shape[3])
        return painted.gather(2, index)[..., left : left + self.width]

    def _draw(self, image: Tensor, layer: Tensor, tint: Tensor) -> Tensor:
        n = len(layer)

        def column(k: int) -> Tensor:
            return layer[:, k].view(n, 1, 1)

        x, y, size, angle = column(1), column(2), column(3), column(5)
        strength, foot_x, foot_y = column(9), column(10), column(11)
        # The contact shadow: a flat Gaussian under the feet.
        reach = 0.36 * size
        shade = strength * torch.exp(-(((self.x - foot_x) / reach) ** 2) - ((self.y - foot_y) / (0.16 * reach)) ** 2)
        image = image * (1 - shade.unsqueeze(1))
        # Canvas → picture: turn back, mirror, scale.
        cos, sin = torch.cos(angle), torch.sin(angle)
        dx, dy = (self.x - x) / size, (self.y - y) / size
        u = (dx * cos + dy * sin) * torch.where(column(4) > 0, -1.0, 1.0) + 0.5
        v = dy * cos - dx * sin + 0.5
        # The level whose pixels are about as large as the canvas's.
        level = torch.log2((SIZE / (size * self.size)).clamp(1.0)).round().clamp(0, 2)
        scale = 0.5**level
        left, top = (level > 0).float() * SIZE, (level > 1).float() * (SIZE // 2)
        half = 0.5 * math.sqrt(1.0)
        px = left + (u * SIZE * scale).clamp(half, 1e9).minimum(SIZE * scale - half)
        py = top + (v * SIZE * scale).clamp(half, 1e9).minimum(SIZE * scale - half)
        grid = torch.stack([px / (SIZE * 1.5) * 2 - 1, py / SIZE * 2 - 1], -1)
        source = self.atlas[layer[:, 0].long()].float()
        drawn = F.grid_sample(source, grid, align_corners=False)
        inside = ((u > 0) & (u < 1) & (v > 0) & (v < 1)).unsqueeze(1)
        drawn = drawn * inside
        alpha = drawn[:, 3:]
        colour = self._recolour(drawn[:, :3], layer, alpha) * tint
        return image * (1 - alpha) + colour.minimum(alpha)

    def _recolour(self, colour: Tensor, layer: Tensor, alpha: Tensor) -> Tensor:
        """Turn the hue about the grey axis (the rotation matrix about (1, 1, 1)), then saturation and brightness."""
        turn = layer[:, 6].view(-1, 1, 1, 1) * 2 * math.pi
        cos, third, root = torch.cos(turn), 1 / 3, math.sqrt(1 / 3)
        grey = colour.mean(1, keepdim=True)
        rolled, back = colour.roll(-1, 1), colour.roll(1, 1)
        turned = colour * (cos + (1 - cos) * third) + (rolled + back) * (1 - cos) * third
        turned = turned + (back - rolled) * root * torch.sin(turn)
        turned = grey + (turned - grey) * layer[:, 7].view(-1, 1, 1, 1)
        return (turned * layer[:, 8].view(-1, 1, 1, 1)).clamp(0).minimum(alpha)
