"""Tools to paint many pictures of one place at once, on whatever device torch is given.

Coordinates run from 0 to 1, x to the right and y downwards; colours are linear mixes of sRGB values in 0..1.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def rgb(text: str) -> tuple[float, float, float]:
    """Read "#rrggbb" as three numbers in 0..1."""
    return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


class Brush:
    """Tools to paint n pictures of one place at once.

    Args:
        horizon: Tensor [n]: where the ground begins in each picture.
        size: Side in pixels.
        generator: Source of chance, on the same device.
    """

    def __init__(self, horizon: Tensor, size: int, generator: torch.Generator) -> None:
        self.n = len(horizon)
        self.size = size
        self.device = horizon.device
        self.generator = generator
        self.horizon = horizon.view(-1, 1, 1)
        line = (torch.arange(size, device=self.device, dtype=torch.float32) + 0.5) / size
        self.x = line.view(1, 1, -1)
        self.y = line.view(1, -1, 1)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw numbers; by default one a picture, shaped [n, 1, 1]."""
        wanted = (self.n, *(shape or (1, 1)))
        return torch.rand(wanted, device=self.device, generator=self.generator) * (high - low) + low

    def tint(self, colour: str, spread: float = 0.04) -> Tensor:
        """Return a colour, a little different in each picture, [n, 3, 1, 1]."""
        base = torch.tensor(rgb(colour), device=self.device).view(1, 3, 1, 1)
        return (
            base * self.uniform(1 - spread, 1 + spread, 1, 1, 1) + self.uniform(-spread, spread, 3, 1, 1) / 2
        ).clamp(0, 1)

    def gradient(self, stops: Sequence[tuple[float, str]], t: Tensor | None = None, spread: float = 0.04) -> Tensor:
        """Blend colours along t in 0..1 (downwards by default), [n, 3, size, size]."""
        at = (self.y.expand(self.n, self.size, self.size) if t is None else t).unsqueeze(1)
        shift = 1 + self.uniform(-spread, spread, 1, 1, 1)
        image = self.tint(stops[0][1], 0.0).expand(self.n, 3, self.size, self.size)
        for (low, _), (high, colour) in itertools.pairwise(stops):
            part = ((at - low) / max(high - low, 1e-6)).clamp(0, 1)
            part = part * part * (3 - 2 * part)
            image = image + (self.tint(colour, 0.0) - image) * part
        return (image * shift + self.uniform(-spread, spread, 3, 1, 1) / 3).clamp(0, 1)

    def over(self, image: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
        """Lay a colour ([n, 3, 1, 1] or a picture) over an image where alpha ([n, size, size]) says."""
        return image + (colour - image) * alpha.unsqueeze(1)

    def below(self, edge: Tensor, soft: float = 1.2) -> Tensor:
        """Return 1 under a line y = edge(x) ([n, 1, size]) and 0 above, with a soft step of so many pixels."""
        return ((self.y - edge) * self.size / soft + 0.5).clamp(0, 1)

    def ridge(self, base: Tensor | float, height: float, waves: float, rough: float = 0.5, octaves: int = 4) -> Tensor:
        """Return a hilly line, [n, 1, size]: sines whose heights fall by `rough` as their number doubles."""
        line = torch.zeros(self.n, 1, self.size, device=self.device)
        total = 0.0
        for k in range(octaves):
            number = waves * 2**k * self.uniform(0.8, 1.25)
            line = line + rough**k * torch.sin(2 * math.pi * (number * self.x + self.uniform(0, 1)))
            total += rough**k
        return base - height * line / total

    def peaks(self, base: Tensor | float, height: float, number: float) -> Tensor:
        """Return a line of pointed mountains, [n, 1, size]."""
        warp = self.x + 0.03 * torch.sin(2 * math.pi * (2.3 * self.x + self.uniform(0, 1)))
        line = torch.zeros(self.n, 1, self.size, device=self.device)
        for k, share in enumerate((0.66, 0.24, 0.10)):
            phase = number * 2.1**k * self.uniform(0.85, 1.15) * warp + self.uniform(0, 1)
            line = line + share * (1 - 2 * (phase - phase.floor() - 0.5).abs())
        return base - height * line

    def noise(self, cells: int, octaves: int = 3) -> Tensor:
        """Return smooth noise in 0..1, [n, size, size]."""
        out = torch.zeros(self.n, 1, self.size, self.size, device=self.device)
        for k in range(octaves):
            grid = torch.rand(
                self.n, 1, cells * 2**k + 1, cells * 2**k + 1, device=self.device, generator=self.generator
            )
            out = out + F.interpolate(grid, (self.size, self.size), mode="bicubic", align_corners=True) * 0.5**k
        return (out.squeeze(1) / (2 - 0.5 ** (octaves - 1))).clamp(0, 1)

    def scatter(
        self, columns: int, rows: int, chance: float, shear: float = 0.0, aspect: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Throw one dot into some cells of a grid.

        Returns:
            Distance to the cell's dot (in canvas units, y counted 1/aspect), offsets dx and dy, and a random number of
            cell; each [n, size, size]. Cells without a dot are far away.
        """
        shape = (self.n, rows, columns)

        def draw() -> Tensor:
            return torch.rand(shape, device=self.device, generator=self.generator)

        x = (self.x + shear * self.y) % 1.0
        cx = (x * columns).long().clamp(0, columns - 1).expand(self.n, self.size, self.size)
        cy = (self.y * rows).long().clamp(0, rows - 1).expand(self.n, self.size, self.size)
        flat = cy * columns + cx

        def pick(values: Tensor) -> Tensor:
            return values.view(self.n, -1).gather(1, flat.reshape(self.n, -1)).view(self.n, self.size, self.size)

        dx = x - (cx + 0.25 + 0.5 * pick(draw())) / columns
        dy = self.y - (cy + 0.25 + 0.5 * pick(draw())) / rows
        there = pick((draw() < chance).float())
        distance = torch.sqrt(dx * dx + (dy / aspect) ** 2) + (1 - there) * 9.0
        return distance, dx, dy, pick(draw())

    def dot(self, distance: Tensor, radius: Tensor | float, soft: float = 1.5) -> Tensor:
        """Return 1 inside a radius and 0 outside, with a soft step of so many pixels."""
        return ((radius - distance) * self.size / soft + 0.5).clamp(0, 1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance to one point a picture, [n, size, size]."""
        return torch.sqrt((self.x - x) ** 2 + (self.y - y) ** 2)

    def stars(self, image: Tensor, chance: float = 0.5, until: Tensor | float = 1.0, cells: int = 14) -> Tensor:
        """Add stars of different brightness."""
        distance, _, _, luck = self.scatter(cells, cells, chance)
        glow = torch.exp(-((distance / (0.0035 + 0.0045 * luck**3)) ** 2)) * (0.45 + 0.55 * luck)
        glow = glow * ((until - self.y) * 40).clamp(0, 1)
        white = torch.tensor([1.0, 0.97, 0.90], device=self.device).view(1, 3, 1, 1)
        return self.over(image, white, glow.clamp(0, 1))

    def clouds(
        self, image: Tensor, low: float = 0.08, high: float = 0.40, number: int = 3, colour: str = "#ffffff"
    ) -> Tensor:
        """Add soft round clouds: a handful of discs on a common flat base each."""
        white, shade = self.tint(colour, 0.0), self.tint(colour, 0.0) * 0.88
        for _ in range(number):
            x, y, s = self.uniform(-0.05, 1.05), self.uniform(low, high), self.uniform(0.55, 1.15)
            alpha = torch.zeros(self.n, self.size, self.size, device=self.device)
            for k in range(4):
                dx = (k - 1.5) * 0.055 * s
                r = (0.038 + 0.030 * (k in (1, 2))) * s * self.uniform(0.85, 1.15)
                alpha = torch.maximum(alpha, self.dot(self.distance(x + dx, y - r * 0.4), r, 5))
            alpha = alpha * ((y + 0.018 * s - self.y) * self.size / 4 + 0.5).clamp(0, 1)
            part = ((self.y - y + 0.05 * s) / (0.07 * s)).clamp(0, 1).unsqueeze(1)
            image = self.over(image, white + (shade - white) * part, alpha * 0.94)
        return image

    def sun(
        self, image: Tensor, x: Tensor, y: Tensor, radius: float, core: str, halo: str, strength: float = 0.6
    ) -> Tensor:
        """Add a disc with a halo of light."""
        distance = self.distance(x, y)
        image = self.over(image, self.tint(halo, 0.0), torch.exp(-((distance / (radius * 3.2)) ** 2)) * strength)
        return self.over(image, self.tint(core, 0.0), self.dot(distance, radius, 2.0))

    def ground(
        self, image: Tensor, edge: Tensor, near: str, far: str, grain: float = 0.03, spread: float = 0.05
    ) -> Tensor:
        """Fill below a line with a colour that changes towards the viewer, with a little grain."""
        depth = ((self.y - edge) / (1.02 - edge).clamp(0.05)).clamp(0, 1).expand(self.n, self.size, self.size)
        fill = self.gradient([(0.0, far), (1.0, near)], depth, spread)
        fill = fill * (1 + grain * (self.noise(9, 3) * 2 - 1)).unsqueeze(1)
        return self.over(image, fill.clamp(0, 1), self.below(edge))
