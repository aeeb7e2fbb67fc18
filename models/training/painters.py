"""The painters of places and plain colours, by formulas.

Each takes a `Brush` (how many, how large, which source of chance) and returns a tensor [n, 3, size, size] in 0..1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads

from .brush import Brush, rgb

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def moon(
    b: Brush, sky: str = "#080b20", low_sky: str = "#343a70", near: str = "#8f919c", far: str = "#c9cad2"
) -> Tensor:
    """Paint a ground of craters under a starry sky, in four colours."""
    image = b.stars(b.gradient([(0.0, sky), (0.75, low_sky)]), 0.55)
    back = b.ridge(b.horizon - 0.03, 0.035, 1.2)
    image = b.over(image, b.tint(near) * 0.62, b.below(back))
    edge = b.ridge(b.horizon, 0.028, 0.8, 0.4)
    image = b.ground(image, edge, near, far, 0.05)
    # Craters: ellipses, dark towards the light and with a bright far rim.
    for columns, rows, size in ((4, 9, 0.050), (7, 14, 0.024)):
        _, dx, dy, luck = b.scatter(columns, rows, 0.5)
        depth = ((b.y - edge) / (1 - edge).clamp(0.05)).clamp(0, 1)
        radius = size * (0.5 + 0.6 * luck) * (0.45 + 0.75 * depth)
        distance = torch.sqrt(dx**2 + (dy / 0.38) ** 2) + ((dx.abs() > 0.5 / columns) * 9.0)
        inside = b.dot(distance, radius, 2.0) * b.below(edge + 0.02) * (luck > 0.35)
        slope = (dy / (0.38 * radius)).clamp(-1, 1)
        image = b.over(image, (image * (0.80 + 0.24 * slope).unsqueeze(1)).clamp(0, 1), inside)
    return image


def mars(b: Brush) -> Tensor:
    """Paint Mars."""
    return moon(b, "#3a1420", "#e08a54", "#a8442a", "#d9794c")


def beach(b: Brush) -> Tensor:
    """Paint a beach."""
    image = b.gradient([(0.0, "#3fa9f5"), (0.55, "#c9ecff")])
    image = b.sun(image, b.uniform(0.12, 0.88), b.uniform(0.09, 0.20), 0.055, "#fff3b0", "#fff0c0")
    image = b.clouds(image, 0.08, 0.28, 2)
    sea = b.horizon - 0.22 + torch.zeros_like(b.x)
    image = b.ground(image, sea, "#2fd0d6", "#1678c8", 0.02)
    distance, _, _, luck = b.scatter(9, 40, 0.35, aspect=0.12)
    glints = b.dot(distance, 0.03 * luck, 3) * b.below(sea + 0.01)
    image = b.over(image, b.tint("#ffffff", 0.0), glints * 0.35)
    shore = b.ridge(b.horizon, 0.018, 0.9, 0.5)
    image = b.over(image, b.tint("#eafcff", 0.0), b.below(shore - 0.022, 4) * 0.85)
    image = b.ground(image, shore, "#f2cf8e", "#d9b06f", 0.05)
    return b.over(image, b.tint("#f9e2ae", 0.02), b.below(shore + 0.035, 14) * 0.75)


def conifers(b: Brush, image: Tensor, base: Tensor, number: int, height: float, colour: str) -> Tensor:
    """Paint a row of conifers over an image."""
    for shift in (0.0, 0.5):
        at = b.x * number + shift + b.uniform(0, 1)
        cell = at.floor().long() % (number + 3)
        draw = torch.rand(b.n, number + 3, device=b.device, generator=b.generator)
        luck = draw.gather(1, cell.view(b.n, -1)).view(b.n, 1, -1)
        tall = height * (0.60 + 0.55 * luck)
        top = base - tall
        down = ((b.y - top) / tall).clamp(0, 1)
        tier = down * 4.0
        half = 0.46 * (0.16 + 0.62 * down + 0.22 * (tier - tier.floor())) * (down > 0)
        across = (at - at.floor() - 0.5).abs()
        alpha = ((half - across) * b.size / number / 1.3 + 0.5).clamp(0, 1) * b.below(top)
        lit = 1.0 + 0.20 * (0.5 - (at - at.floor())) + 0.12 * (1 - down)
        image = b.over(image, (b.tint(colour) * lit.unsqueeze(1)).clamp(0, 1), alpha)
    return image


def forest(b: Brush) -> Tensor:
    """Paint a forest."""
    image = b.gradient([(0.0, "#a9dcc0"), (0.6, "#e6f5d0")])
    image = conifers(b, image, b.horizon + 0.0 * b.x, 13, 0.34, "#86b899")
    image = conifers(b, image, b.horizon + 0.02 + 0.0 * b.x, 9, 0.46, "#4f9068")
    image = conifers(b, image, b.horizon + 0.05 + 0.0 * b.x, 6, 0.60, "#276746")
    edge = b.ridge(b.horizon, 0.02, 1.0)
    image = b.ground(image, edge, "#3f7a3a", "#6aa84f", 0.08)
    distance, _, _, luck = b.scatter(10, 20, 0.25)
    return b.over(image, b.tint("#a5d46a", 0.0), b.dot(distance, 0.006 + 0.004 * luck) * b.below(edge + 0.03) * 0.7)


def skyline(
    b: Brush, image: Tensor, base: Tensor, number: int, low: float, high: float, wall: str, lit: float
) -> Tensor:
    """Paint a skyline of lit windows over an image."""
    at = b.x * number + b.uniform(0, 1)
    cell = at.floor().long()
    draw = torch.rand(b.n, number + 2, device=b.device, generator=b.generator)
    luck = draw.gather(1, cell.view(b.n, -1)).view(b.n, 1, -1)
    top = base - (low + (high - low) * luck)
    inside = at - at.floor()
    body = b.below(top) * ((inside - 0.04) * b.size / number + 0.5).clamp(0, 1)
    image = b.over(image, b.tint(wall) * (0.9 + 0.25 * luck).unsqueeze(1), body)
    columns, rows = number * 4, 44
    wx = (inside * 4.6 - 0.3) % 1.0
    column = (cell * 4 + (inside * 4.6 - 0.3).floor().long().clamp(0, 3)).clamp(0, columns + 7)
    row = (b.y * rows).long()
    on = torch.rand(b.n, rows + 1, columns + 8, device=b.device, generator=b.generator)
    index = (row * (columns + 8) + column).reshape(b.n, -1)
    glow = on.view(b.n, -1).gather(1, index).view(b.n, b.size, b.size)
    wy = (b.y * rows) % 1.0
    pane = (wx > 0.22) & (wx < 0.80) & (wy > 0.25) & (wy < 0.85) & (inside > 0.065) & (inside < 0.93)
    window = pane.float() * (glow < lit) * b.below(top + 0.02) * b.below(top)
    colour = b.gradient([(0.0, "#ffd56b"), (1.0, "#ffe9a8")], (glow / lit).clamp(0, 1), 0.0)
    return b.over(image, colour, window * (0.65 + 0.35 * (1 - glow / lit)).clamp(0, 1))


def city(b: Brush) -> Tensor:
    """Paint a city at night."""
    image = b.gradient([(0.0, "#0c1030"), (0.45, "#2c2a66"), (0.75, "#7a4f94")])
    image = b.stars(image, 0.35, 0.45)
    image = skyline(b, image, b.horizon + 0.0 * b.x, 9, 0.18, 0.42, "#2b2c5e", 0.22)
    image = skyline(b, image, b.horizon + 0.01 + 0.0 * b.x, 6, 0.08, 0.32, "#171a3d", 0.36)
    edge = b.horizon + torch.zeros_like(b.x)
    image = b.ground(image, edge, "#2e3250", "#444870", 0.03)
    image = b.over(image, b.tint("#6b6fa0"), (b.below(edge) - b.below(edge + 0.02)).clamp(0, 1))
    lane = (b.y - b.horizon - 0.13).abs() < 0.008 + 0.0 * b.x
    dash = ((b.x * 5 + b.uniform(0, 1)) % 1.0) < 0.55
    return b.over(image, b.tint("#f2d27a"), (lane & dash).float() * 0.8)


def snow(b: Brush) -> Tensor:
    """Paint a snowy field."""
    image = b.gradient([(0.0, "#8fc1ea"), (0.7, "#e4f2fc")])
    image = b.over(image, b.tint("#cfe2f4"), b.below(b.ridge(b.horizon - 0.08, 0.06, 1.1, 0.4)))
    image = conifers(b, image, b.horizon + 0.01 + 0.0 * b.x, 11, 0.17, "#8fb4c9")
    image = b.ground(image, b.ridge(b.horizon, 0.035, 0.7, 0.35), "#ffffff", "#d7e8f7", 0.015)
    for cells, radius in ((8, 0.012), (12, 0.007)):
        distance, _, _, luck = b.scatter(cells, cells, 0.55)
        image = b.over(image, b.tint("#ffffff", 0.0), b.dot(distance, radius * (0.5 + 0.6 * luck), 2.2) * 0.95)
    return image


def desert(b: Brush) -> Tensor:
    """Paint a desert."""
    image = b.gradient([(0.0, "#5fb4ec"), (0.62, "#fde2b0")])
    image = b.sun(image, b.uniform(0.15, 0.85), b.uniform(0.12, 0.24), 0.065, "#fffbe0", "#fff0b8")
    for lift, height, waves, near, far in (
        (-0.10, 0.07, 0.8, "#dc9f5c", "#eec07f"),
        (-0.03, 0.06, 0.6, "#e3a558", "#f6cf8b"),
        (0.05, 0.05, 0.5, "#e9ac58", "#fbdb9c"),
    ):
        edge = b.ridge(b.horizon + lift, height, waves, 0.3)
        image = b.ground(image, edge, near, far, 0.03)
        slope = F.pad(edge[..., 1:] - edge[..., :-1], (0, 1)) * b.size
        shade = (slope * 1.4).clamp(0, 0.20) * torch.exp(-((b.y - edge).clamp(0) / 0.10))
        image = (image * (1 - shade * b.below(edge)).unsqueeze(1)).clamp(0, 1)
    return image


def underwater(b: Brush) -> Tensor:
    """Paint the ocean floor."""
    image = b.gradient([(0.0, "#5fe0f0"), (0.35, "#1f9fd8"), (1.0, "#0b4f96")])
    slant = b.uniform(-0.5, 0.5)
    rays = (torch.sin((b.x + slant * b.y) * b.uniform(16, 26) + b.uniform(0, 6)) * 0.5 + 0.5) ** 3
    rays = rays * (torch.sin((b.x + slant * b.y) * b.uniform(7, 11) + b.uniform(0, 6)) * 0.5 + 0.5)
    image = b.over(image, b.tint("#e8ffff", 0.0), rays * (1 - b.y * 1.15).clamp(0, 1) * 0.45)
    edge = b.ridge(b.horizon + 0.06, 0.03, 0.8)
    image = b.ground(image, edge, "#d9c58e", "#7fb0a8", 0.06)
    for side in (0, 1):
        for _ in range(3):
            root = b.uniform(0.01, 0.15) + side * 0.84
            tall = b.uniform(0.20, 0.42)
            sway = root + 0.022 * torch.sin((1 - b.y) * 22 + b.uniform(0, 6))
            along = ((1.0 - b.y) / tall).clamp(0, 1)
            alpha = b.dot((b.x - sway).abs(), 0.014 * (1 - along) + 0.0005, 1.5) * (along < 1)
            image = b.over(image, b.tint("#1d9a6c", 0.10), alpha)
    distance, dx, dy, luck = b.scatter(8, 8, 0.35)
    radius = 0.008 + 0.014 * luck
    ring = b.dot(distance, radius) - 0.75 * b.dot(distance, radius * 0.78)
    shine = b.dot(
        torch.sqrt((dx + radius * 0.35) ** 2 + (dy + radius * 0.35) ** 2) + (distance > 1) * 9.0, radius * 0.25
    )
    return b.over(image, b.tint("#e9ffff", 0.0), (ring * 0.7 + shine).clamp(0, 1))


def space(b: Brush) -> Tensor:
    """Paint outer space."""
    image = b.gradient([(0.0, "#07051c"), (1.0, "#150a38")])
    cloud = (b.noise(3, 4) - 0.42).clamp(0) * 2.4
    image = b.over(image, b.tint("#7a2ea8", 0.12), cloud.clamp(0, 0.75))
    image = b.over(image, b.tint("#1e6fd0", 0.12), ((b.noise(3, 4) - 0.50).clamp(0) * 2.4).clamp(0, 0.6))
    image = b.over(image, b.tint("#ff5fa8", 0.10), ((b.noise(3, 4) - 0.58).clamp(0) * 2.6).clamp(0, 0.5))
    image = b.stars(b.stars(image, 0.6, cells=18), 0.3, cells=8)
    # A planet near a corner, lit from the upper left.
    x, y, r = b.uniform(0.0, 1.0), b.uniform(0.02, 0.18), b.uniform(0.08, 0.17)
    x = torch.where(x < 0.5, x * 0.34, 1 - (1 - x) * 0.34)
    y = torch.where(b.uniform(0, 1) < 0.6, y, 1 - y)
    disc = b.dot(b.distance(x, y), r)
    light = (0.75 - ((b.x - x) + (b.y - y)) / r * 0.55).clamp(0.12, 1.1).unsqueeze(1)
    bands = 1 + 0.10 * torch.sin((b.y - y) / r * 7 + (b.x - x) * 6).unsqueeze(1)
    hue = torch.rand(b.n, 3, 1, 1, device=b.device, generator=b.generator) * 0.6 + 0.35
    return b.over(image, (hue * light * bands).clamp(0, 1), disc)


def meadow(b: Brush) -> Tensor:
    """Paint a meadow."""
    image = b.gradient([(0.0, "#4fb2f7"), (0.65, "#d8f1ff")])
    image = b.clouds(image, 0.08, 0.34, 3)
    image = b.ground(image, b.ridge(b.horizon - 0.07, 0.05, 0.8, 0.3), "#8ccf6a", "#a9dc86", 0.03)
    edge = b.ridge(b.horizon, 0.05, 0.6, 0.3)
    image = b.ground(image, edge, "#4fae3f", "#86cf58", 0.06)
    for colour, cells in (("#ffffff", 13), ("#ffd84d", 11), ("#ff8fb8", 10)):
        distance, _, _, luck = b.scatter(cells, cells * 2, 0.22)
        depth = ((b.y - edge) / (1 - edge)).clamp(0, 1)
        image = b.over(image, b.tint(colour, 0.0), b.dot(distance, 0.004 + 0.007 * luck * depth) * b.below(edge + 0.05))
    return image


def sunset(b: Brush) -> Tensor:
    """Paint a sunset over the sea."""
    image = b.gradient([(0.0, "#3b2a78"), (0.32, "#c2477f"), (0.55, "#ff8a4c"), (0.72, "#ffd27a")])
    x = b.uniform(0.25, 0.75)
    image = b.sun(image, x, b.horizon - b.uniform(0.02, 0.06), 0.11, "#fff2b0", "#ffcf6b", 0.75)
    image = b.clouds(image, 0.12, 0.40, 2, "#f7a08a")
    sea = b.horizon + torch.zeros_like(b.x)
    image = b.ground(image, sea, "#4a2a66", "#e0785a", 0.02)
    wobble = torch.sin(b.y * 190 + 3 * torch.sin(b.x * 9)) * 0.5 + 0.5
    lane = torch.exp(-(((b.x - x) / (0.06 + 0.28 * (b.y - b.horizon).clamp(0))) ** 2)) * wobble * b.below(sea)
    image = b.over(image, b.tint("#ffe09a", 0.0), lane * 0.8)
    shore = b.ridge(b.horizon + 0.13, 0.02, 0.6)
    return b.ground(image, shore, "#33203f", "#6b3a55", 0.05)


def rain(b: Brush) -> Tensor:
    """Paint a rainy street."""
    image = b.gradient([(0.0, "#54657c"), (0.7, "#a9b8c6")])
    image = b.clouds(image, 0.04, 0.14, 4, "#7b8a9e")
    image = skyline(b, image, b.horizon + 0.0 * b.x, 7, 0.06, 0.20, "#7f8fa3", 0.10)
    edge = b.horizon + torch.zeros_like(b.x)
    image = b.ground(image, edge, "#5d6e82", "#8798aa", 0.05)
    _, dx, dy, luck = b.scatter(4, 12, 0.5)
    puddle = b.dot(torch.sqrt(dx**2 + (dy / 0.25) ** 2), 0.05 + 0.05 * luck, 3) * b.below(edge + 0.05) * (luck > 0.4)
    image = b.over(image, b.tint("#b9cbdb"), puddle * 0.55)
    for columns, rows in ((18, 7), (12, 5)):
        _, dx, dy, luck = b.scatter(columns, rows, 0.55, shear=0.16)
        streak = (dx.abs() < 0.0032).float() * (dy.abs() < 0.022 + 0.02 * luck).float()
        image = b.over(image, b.tint("#eef5fc", 0.0), streak * (0.35 + 0.35 * luck))
    return image


def room(b: Brush) -> Tensor:
    """Paint a room."""
    walls = torch.tensor([rgb(c) for c in ("#f3d9b8", "#cfe3e8", "#e8cfd8", "#d9e5c8")], device=b.device)
    pick = torch.randint(0, 4, (b.n,), device=b.device, generator=b.generator)
    wall = walls[pick].view(-1, 3, 1, 1)
    light = (1.02 - 0.22 * ((b.x - b.uniform(0.2, 0.8)) ** 2 + (b.y - 0.2) ** 2)).unsqueeze(1)
    image = (wall * light).clamp(0, 1).expand(b.n, 3, b.size, b.size)
    # A window with sky and light, left or right.
    cx = torch.where(b.uniform(0, 1) < 0.5, b.uniform(0.16, 0.24), b.uniform(0.76, 0.84))
    cy, w, h = b.uniform(0.20, 0.26), b.uniform(0.10, 0.13), b.uniform(0.13, 0.17)

    def box(grow: float) -> Tensor:
        return b.dot((b.x - cx).abs(), w + grow, 1.2) * b.dot((b.y - cy).abs(), h + grow, 1.2)

    image = b.over(image, b.tint("#ffffff", 0.0), box(0.022))
    image = b.over(image, b.gradient([(0.0, "#6ec3ff"), (0.5, "#e3f6ff")]), box(0.0))
    bars = torch.maximum(b.dot((b.x - cx).abs(), 0.007, 1.2), b.dot((b.y - cy).abs(), 0.007, 1.2)) * box(0.0)
    image = b.over(image, b.tint("#ffffff", 0.0), bars)
    edge = b.horizon + torch.zeros_like(b.x)
    depth = ((b.y - edge) / (1 - edge)).clamp(0, 1)
    floor = b.gradient([(0.0, "#b9824f"), (1.0, "#d79f66")], depth.expand(b.n, b.size, b.size))
    persp = (b.x - 0.5) / (0.45 + 0.9 * depth)
    joint = ((persp * 9 + b.uniform(0, 1)) % 1.0 - 0.5).abs() > 0.475
    floor = b.over(floor, b.tint("#8f5f36", 0.02), joint.float() * 0.55)
    image = b.over(image, floor, b.below(edge))
    image = b.over(image, b.tint("#ffffff", 0.02), (b.below(edge - 0.028) - b.below(edge)).clamp(0, 1))
    rug = b.dot(torch.sqrt(((b.x - 0.5) / 0.40) ** 2 + ((b.y - 0.90) / 0.085) ** 2), 1.0, 8)
    return b.over(image, b.tint("#c4506a", 0.25), rug * 0.75)


def mountains(b: Brush) -> Tensor:
    """Paint mountains."""
    image = b.gradient([(0.0, "#5aa9ea"), (0.6, "#e6f3fb")])
    image = b.clouds(image, 0.06, 0.22, 2)
    for lift, height, number, rock, cap in (
        (0.02, 0.46, 1.4, "#8fa9cc", "#f4f9ff"),
        (0.03, 0.34, 2.0, "#5f7ba6", "#ffffff"),
    ):
        edge = b.peaks(b.horizon + lift, height, number)
        slope = F.pad(edge[..., 1:] - edge[..., :-1], (0, 1)) * b.size
        lit = (1.0 - 0.14 * slope.sign()).unsqueeze(1)
        image = b.over(image, (b.tint(rock) * lit).clamp(0, 1), b.below(edge))
        jag = 0.020 * torch.sin(b.x * 70 + b.uniform(0, 6)) + 0.012 * torch.sin(b.x * 151)
        white = b.below(edge) * ((b.horizon + lift - height * 0.52 + jag - b.y) * b.size / 1.5 + 0.5).clamp(0, 1)
        image = b.over(image, (b.tint(cap, 0.0) * (1 - 0.05 * slope.sign()).unsqueeze(1)).clamp(0, 1), white)
    return b.ground(image, b.ridge(b.horizon + 0.02, 0.025, 0.8), "#5e9a52", "#8fbf7a", 0.06)


def sky(b: Brush) -> Tensor:
    """Paint clouds in the sky."""
    image = b.gradient([(0.0, "#2f8fe8"), (1.0, "#bfe6ff")])
    image = b.sun(image, b.uniform(0.1, 0.9), b.uniform(0.05, 0.15), 0.05, "#fffbe0", "#ffffff", 0.5)
    image = b.clouds(image, 0.08, 0.95, 5)
    edge = b.ridge(0.93, 0.05, 2.2, 0.6)
    return b.over(image, b.tint("#ffffff", 0.01), b.below(edge, 10))


def autumn(b: Brush) -> Tensor:
    """Paint an autumn park."""
    image = b.gradient([(0.0, "#9fd0ea"), (0.6, "#fdf0d0")])
    for number, height, lift, colours in (
        (8, 0.13, 0.16, ("#f0b35a", "#e88f4a")),
        (5, 0.19, 0.18, ("#e2672f", "#f2a33a")),
    ):
        for shift, colour in zip((0.0, 0.5), colours, strict=True):
            at = b.x * number + shift + b.uniform(0, 1)
            cell = at.floor().long() % (number + 3)
            draw = torch.rand(b.n, number + 3, device=b.device, generator=b.generator)
            luck = draw.gather(1, cell.view(b.n, -1)).view(b.n, 1, -1)
            dx = (at - at.floor() - 0.5) / number
            top = b.horizon - lift - 0.06 * luck
            trunk = b.dot(dx.abs(), 0.010, 1.5) * b.below(top) * (1 - b.below(b.horizon + 0.03))
            image = b.over(image, b.tint("#7a4a2c"), trunk)
            crown = torch.sqrt((dx / 0.85) ** 2 + (b.y - top) ** 2)
            lit = (1.08 - 1.1 * (b.y - top) - 0.8 * dx).clamp(0.7, 1.25).unsqueeze(1)
            alpha = b.dot(crown, height * 0.62 * (0.8 + 0.3 * luck), 3)
            image = b.over(image, (b.tint(colour, 0.08) * lit).clamp(0, 1), alpha)
    edge = b.ridge(b.horizon, 0.02, 0.8)
    image = b.ground(image, edge, "#b8742f", "#d9a04a", 0.08)
    for colour, cells in (("#e8502e", 12), ("#ffc547", 14)):
        distance, _, _, luck = b.scatter(cells, cells, 0.35, aspect=0.7)
        image = b.over(image, b.tint(colour, 0.05), b.dot(distance, 0.005 + 0.008 * luck) * 0.95)
    return image


def aurora(b: Brush) -> Tensor:
    """Paint the northern lights."""
    image = b.stars(b.gradient([(0.0, "#050d2a"), (0.7, "#123a5e")]), 0.5, 0.6)
    for colour, height in (("#3dffa0", 0.34), ("#35e0d0", 0.28), ("#b06bff", 0.22)):
        line = b.ridge(b.uniform(0.34, 0.48), 0.10, 0.9, 0.45)
        up = (line - b.y) / height
        curtain = torch.where(up > 0, torch.exp(-up * 2.4), torch.exp(up * 26)) * (1 - up * 0.6).clamp(0, 1)
        folds = 0.65 + 0.35 * torch.sin(b.x * b.uniform(30, 55) + 3 * torch.sin(b.x * 8 + b.uniform(0, 6)))
        image = b.over(image, b.tint(colour), (curtain * folds * 0.75).clamp(0, 0.9))
    image = b.over(image, b.tint("#0c2238"), b.below(b.peaks(b.horizon - 0.01, 0.10, 3.0)))
    return b.ground(image, b.ridge(b.horizon, 0.02, 0.8), "#b9dcec", "#6fa3c0", 0.03)


def plain(colour: str) -> Callable[[Brush], Tensor]:
    """Return the painter of a plain background of one colour, ``#rrggbb``."""

    def paint(b: Brush) -> Tensor:
        base = b.tint(colour, 0.05).expand(b.n, 3, b.size, b.size)
        centre = b.distance(b.uniform(0.35, 0.65), b.uniform(0.25, 0.45))
        light = 1.06 - 0.30 * centre * centre * b.uniform(0.6, 1.4)
        floor = b.below(b.horizon + torch.zeros_like(b.x), 30)
        lift = 0.045 if colour == "#26262c" else 0.0
        return (base * (light - 0.05 * floor).unsqueeze(1) + lift * (1 - centre).unsqueeze(1)).clamp(0, 1)

    return paint
