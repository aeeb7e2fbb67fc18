"""Draws scenes: which subjects, where, how large, in which relation, on which background."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .backgrounds import BACKGROUNDS, Background
from .data import SIZE
from .scenes import RELATIONS, SEAT, STAR, Layer, Scene, held_out
from .subjects import Subject, subjects

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from .data import Sprites


class Sampler:
    """Draws scenes.

    Args:
        sprites: The pictures.
        rng: Source of chance.
    """

    def __init__(self, sprites: Sprites, rng: Random) -> None:
        self.sprites = sprites
        self.rng = rng
        self.all = subjects()
        self.living = [s for s in self.all if s.alive]
        small = {"dog", "cat", "pig", "duck", "sheep", "turtle"}
        self.riders = [s for s in self.living if "air" not in s.flags and (not s.saddle or s.name in small)]
        self.mounts = [s for s in self.all if s.saddle]
        self.holders = [s for s in self.all if s.kind == "person" and not s.flags & {"full", "head"}]
        self.handy = [s for s in self.all if "hand" in s.flags]
        self.tall = [s for s in self.all if "back" in s.flags]
        self.floating = [s for s in self.all if "air" in s.flags]
        # Weights: scenes twice as often as a plain colour.
        self.grounds = [i for i, b in enumerate(BACKGROUNDS) for _ in range(1 if b.plain else 3)]

    # --- what ------------------------------------------------------------------------------------------------------

    def training(self) -> Scene:
        """Draw a scene that is not held out."""
        while True:
            scene = self.candidate()
            if not held_out(scene.items, scene.background):
                self.place(scene)
                return scene

    def unseen(self) -> Scene:
        """Draw a scene that is held out."""
        while True:
            scene = self.candidate()
            if held_out(scene.items, scene.background):
                self.place(scene)
                return scene

    def candidate(self) -> Scene:
        """Draw what a scene shows, held out or not, but not where."""
        rng = self.rng
        background = rng.choice(self.grounds)
        chance = rng.random()
        if chance < 0.025:
            return Scene(background, 0.7, [])
        if chance < 0.040:
            return self._star()
        if chance < 0.44:
            subject = self._subject()
            odds = rng.random()
            scene = Scene(background, 0.7, [subject])
            if odds < 0.40:
                scene.count = rng.choice((2, 3))
            elif odds < 0.55:
                scene.size = rng.choice(("small", "large"))
            elif odds < 0.70:
                scene.side = rng.choice(("left", "right"))
                scene.size = rng.choice(("", "", "small"))
            return scene
        if chance < 0.96:
            relation = rng.choices(range(1, 8), weights=(26, 20, 12, 10, 14, 10, 8))[0]
            return Scene(background, 0.7, self.pair(relation), relation)
        return Scene(background, 0.7, rng.sample(self.all, 3))

    def _subject(self) -> Subject:
        return self.rng.choice(self.all)

    def _star(self) -> Scene:
        names = {s.name: s for s in self.all}
        moon = next(i for i, b in enumerate(BACKGROUNDS) if b.name == STAR[3])
        odds = self.rng.random()
        if odds < 0.6:
            return Scene(moon, 0.7, [names[STAR[0]], names[STAR[2]]], RELATIONS.index("riding"))
        background = self.rng.choice(self.grounds)
        rider = names[STAR[0]] if odds < 0.8 else self.rng.choice(self.riders)
        mount = names[STAR[2]] if odds > 0.8 else self.rng.choice(self.mounts)
        if rider is mount:
            rider = names[STAR[0]]
        return Scene(background if odds < 0.9 else moon, 0.7, [rider, mount], RELATIONS.index("riding"))

    def pair(self, relation: int) -> list[Subject]:
        """Draw two different subjects that a relation suits.

        Args:
            relation: Index into `RELATIONS`.
        """
        rng = self.rng
        pools: dict[str, tuple[list[Subject], list[Subject]]] = {
            "riding": (self.riders if rng.random() < 0.5 else self.holders, self.mounts),
            "holding": (self.holders, self.handy),
            "above": (self.floating if rng.random() < 0.5 else list(self.all), list(self.all)),
        }
        first, second = pools.get(RELATIONS[relation], (list(self.all), list(self.all)))
        if RELATIONS[relation] == "in front of" and rng.random() < 0.4:
            second = self.tall
        while True:
            one, two = rng.choice(first), rng.choice(second)
            if one is not two:
                return [one, two]

    # --- where -----------------------------------------------------------------------------------------------------

    def place(self, scene: Scene) -> None:
        """Fill in the horizon and the layers of a scene."""
        rng = self.rng
        background = BACKGROUNDS[scene.background]
        scene.horizon = rng.uniform(*background.horizon)
        scene.layers = self._scenery(background)
        actors: list[Layer]
        if not scene.items:
            actors = []
        elif len(scene.items) == 1:
            actors = self._single(scene, background)
        elif scene.relation == 0:
            actors = self._row(scene, background, scene.items, (0.28, 0.36))
        else:
            layouts: dict[str, Callable[[Scene, Background], list[Layer]]] = {
                "riding": self._riding,
                "next to": self._beside,
                "above": self._stacked,
                "under": self._stacked,
                "holding": self._holding,
                "in front of": self._depth,
                "behind": self._depth,
            }
            actors = layouts[RELATIONS[scene.relation]](scene, background)
        scene.layers += self._inside(actors)

    def _inside(self, actors: list[Layer]) -> list[Layer]:
        """Shrink what would leave the canvas, towards its lower edge or its middle."""
        if not actors:
            return actors
        left, top = min(a.box[0] for a in actors), min(a.box[1] for a in actors)
        right, bottom = max(a.box[2] for a in actors), max(a.box[3] for a in actors)
        if right - left > 0.94 or bottom - top > 0.94:
            factor = 0.94 / max(right - left, bottom - top)
            actors = [a.moved(factor, (left + right) / 2, bottom) for a in actors]
            left, top = min(a.box[0] for a in actors), min(a.box[1] for a in actors)
            right, bottom = max(a.box[2] for a in actors), max(a.box[3] for a in actors)
        dx = max(0.02 - left, 0.0) - max(right - 0.98, 0.0)
        dy = max(0.03 - top, 0.0)
        if not dx and not dy:
            return actors
        return [
            replace(a, x=a.x + dx, y=a.y + dy, box=(a.box[0] + dx, a.box[1] + dy, a.box[2] + dx, a.box[3] + dy))
            for a in actors
        ]

    def _scenery(self, background: Background) -> list[Layer]:
        rng, named = self.rng, self.sprites.named
        if background.name == "moon" and rng.random() < 0.45:
            spot = (rng.choice((0.16, 0.84)) + rng.uniform(-0.05, 0.05), rng.uniform(0.13, 0.24))
            return [Layer(named["earth"], *spot, rng.uniform(0.13, 0.22), flip=False, angle=rng.uniform(-0.5, 0.5))]
        if background.name == "city" and rng.random() < 0.5:
            spot = (rng.choice((0.14, 0.86)) + rng.uniform(-0.04, 0.04), rng.uniform(0.11, 0.18))
            return [Layer(named["full moon"], *spot, rng.uniform(0.10, 0.15), flip=False, light=1.05)]
        if background.name == "beach" and rng.random() < 0.4:
            side = rng.random() < 0.5
            x = 0.06 if side else 0.94
            return [Layer(named["palm"], x, rng.uniform(0.46, 0.52), rng.uniform(0.52, 0.66), flip=side)]
        return []

    def _look(self, subject: Subject, *, seated: bool = False) -> int:
        variants = self.sprites.variants[subject.index]
        index = variants[0] if self.rng.random() < 0.45 else self.rng.choice(variants)
        return self.sprites.seated.get(index, index) if seated else index

    def _put(
        self,
        subject: Subject,
        extent: float,
        x: float,
        bottom: float,
        *,
        flip: bool | None = None,
        shadow: float = 0.0,
        sprite: int | None = None,
        tilt: float = 0.06,
    ) -> Layer:
        """Place a subject so that the longer side of its opaque part is `extent` and its lower edge is at `bottom`."""
        rng = self.rng
        index = self._look(subject) if sprite is None else sprite
        mirrored = rng.random() < 0.5 if flip is None else flip
        left, top, right, low = (float(v) / SIZE for v in self.sprites.boxes[index])
        size = extent / max(right - left, low - top)
        if mirrored:
            left, right = 1 - right, 1 - left
        cx = x - ((left + right) / 2 - 0.5) * size
        cy = bottom - (low - 0.5) * size
        box = (cx + (left - 0.5) * size, bottom - (low - top) * size, cx + (right - 0.5) * size, bottom)
        return Layer(
            index,
            cx,
            cy,
            size,
            mirrored,
            angle=rng.gauss(0, tilt) if shadow == 0 else rng.gauss(0, tilt * 0.4),
            hue=rng.gauss(0, 0.008),
            saturation=rng.uniform(0.92, 1.10),
            light=rng.uniform(0.94, 1.06),
            shadow=shadow,
            box=box,
        )

    def _floor(self, scene: Scene, background: Background, low: float = 0.80, high: float = 0.93) -> float:
        """Draw where feet stand."""
        if background.free:
            return self.rng.uniform(low - 0.04, high - 0.02)
        return self.rng.uniform(max(low, min(scene.horizon + 0.06, high)), high)

    def _stand(
        self,
        scene: Scene,
        background: Background,
        subject: Subject,
        extent: float,
        x: float,
        floor: float | None = None,
    ) -> Layer:
        """Put a subject where it belongs: on the floor, in the air, or as a portrait that begins at the lower edge."""
        rng = self.rng
        shade = 0.0 if background.free and not background.plain else rng.uniform(0.30, 0.50)
        if floor is not None:
            return self._put(subject, extent, x, floor, shadow=shade)
        if background.free and not background.plain:
            return self._put(subject, extent, x, rng.uniform(0.46, 0.56) + extent / 2)
        if "air" in subject.flags:
            return self._put(subject, extent, x, rng.uniform(0.38, 0.52) + extent / 2, shadow=0.0)
        bust = subject.kind == "person" and not subject.flags & {"full", "head"}
        if bust and rng.random() < 0.6:
            return self._put(subject, extent * 1.08, x, rng.uniform(0.98, 1.01), tilt=0.02)
        if background.plain:
            return self._put(subject, extent, x, rng.uniform(0.52, 0.58) + extent / 2, shadow=shade)
        return self._put(subject, extent, x, self._floor(scene, background), shadow=shade)

    def _single(self, scene: Scene, background: Background) -> list[Layer]:
        rng, subject = self.rng, scene.items[0]
        if scene.count > 1:
            spans = {2: (0.32, 0.43), 3: (0.25, 0.32)}
            return self._row(scene, background, [subject] * scene.count, spans[scene.count])
        spans_of = {"small": (0.22, 0.30), "large": (0.78, 0.90), "": (0.50, 0.70)}
        extent = rng.uniform(*spans_of[scene.size])
        if scene.side and not scene.size:
            extent = rng.uniform(0.40, 0.50)
        x = {"left": rng.uniform(0.22, 0.29), "right": rng.uniform(0.71, 0.78), "": rng.uniform(0.40, 0.60)}[scene.side]
        if scene.size == "large":
            x = rng.uniform(0.47, 0.53)
        return [self._stand(scene, background, subject, extent, x)]

    def _row(
        self, scene: Scene, background: Background, items: Sequence[Subject], span: tuple[float, float]
    ) -> list[Layer]:
        """Lay two or three side by side; three sometimes as a triangle. No two cover each other."""
        rng, n = self.rng, len(items)
        extent = rng.uniform(*span)
        middle = rng.uniform(0.46, 0.54)
        gap = max(extent * rng.uniform(1.04, 1.16), 0.27)
        gap = min(gap, 0.90 / n)
        extent = min(extent, gap * 0.98)
        xs = [middle + gap * (i - (n - 1) / 2) for i in range(n)]
        afloat = background.free or all("air" in s.flags for s in items)
        base = rng.uniform(0.44, 0.56) + extent / 2 if afloat else self._floor(scene, background)
        if n == 3 and rng.random() < 0.4:
            xs = [middle - extent * 0.62, middle + extent * 0.62, middle + rng.uniform(-0.05, 0.05)]
            lift = extent * 1.12
            ys = [base + lift / 2, base + lift / 2, base - lift / 2] if afloat else [base, base, base - lift]
            if not afloat:
                ys[2] = max(ys[2], extent + 0.04)
        else:
            ys = [base + rng.uniform(-0.03, 0.03) for _ in range(n)]
        if n == 3 and rng.random() < 0.5:
            xs[0], xs[1] = xs[1], xs[0]
        shade = 0.0 if background.free and not background.plain else rng.uniform(0.30, 0.50)
        layers = [
            self._put(
                s,
                extent * rng.uniform(0.94, 1.04),
                x,
                y,
                shadow=0.0 if "air" in s.flags or y < base - 0.1 else shade,
            )
            for s, x, y in zip(items, xs, ys, strict=True)
        ]
        return sorted(layers, key=lambda layer: layer.box[3])

    def _beside(self, scene: Scene, background: Background) -> list[Layer]:
        rng = self.rng
        extents = [rng.uniform(0.34, 0.46) for _ in range(2)]
        xs = [rng.uniform(0.24, 0.29), rng.uniform(0.71, 0.76)]
        if rng.random() < 0.5:
            xs.reverse()
        floor = self._floor(scene, background)
        if background.free:
            floor = rng.uniform(0.66, 0.78)
        return [
            self._stand(scene, background, s, e, x, None if "air" in s.flags and not background.free else floor)
            for s, e, x in zip(scene.items, extents, xs, strict=True)
        ]

    def _stacked(self, scene: Scene, background: Background) -> list[Layer]:
        rng = self.rng
        upper, lower = scene.items if RELATIONS[scene.relation] == "above" else reversed(scene.items)
        x = rng.uniform(0.38, 0.62)
        floor = self._floor(scene, background, 0.88, 0.96)
        e_low, e_up = rng.uniform(0.38, 0.47), rng.uniform(0.34, 0.42)
        below = self._stand(scene, background, lower, e_low, x, floor)
        above = self._put(upper, e_up, x + rng.uniform(-0.09, 0.09), below.box[1] - rng.uniform(0.01, 0.05))
        return [below, above]

    def _holding(self, scene: Scene, background: Background) -> list[Layer]:
        rng = self.rng
        holder, thing = scene.items
        extent = rng.uniform(0.60, 0.74)
        bottom = rng.uniform(0.97, 1.01) if rng.random() < 0.6 else self._floor(scene, background, 0.88, 0.95)
        person = self._put(holder, extent, rng.uniform(0.42, 0.58), bottom, tilt=0.02, flip=False)
        left, top, right, low = person.box
        side = rng.random() < 0.5
        x = left + (right - left) * (rng.uniform(0.02, 0.14) if side else rng.uniform(0.86, 0.98))
        size = rng.uniform(0.26, 0.34)
        y = low - (low - top) * rng.uniform(0.02, 0.10)
        if thing.name in {"balloon", "kite", "umbrella"}:
            y = low - (low - top) * rng.uniform(0.30, 0.42)
            size *= 1.15
        return [person, self._put(thing, size, x, y, tilt=0.12)]

    def _depth(self, scene: Scene, background: Background) -> list[Layer]:
        rng = self.rng
        front, back = scene.items if RELATIONS[scene.relation] == "in front of" else reversed(scene.items)
        floor = self._floor(scene, background, 0.88, 0.96)
        side = rng.choice((-1, 1))
        middle = rng.uniform(0.44, 0.56)
        behind = self._stand(
            scene, background, back, rng.uniform(0.52, 0.64), middle - side * rng.uniform(0.08, 0.13), floor - 0.10
        )
        before = self._stand(
            scene, background, front, rng.uniform(0.36, 0.44), middle + side * rng.uniform(0.12, 0.18), floor
        )
        return [behind, before]

    def _riding(self, scene: Scene, background: Background) -> list[Layer]:
        """Sit the first subject on the saddle of the second."""
        rng = self.rng
        rider, mount = scene.items
        saddle = mount.saddle or (0.5, 0.05)
        flip = rng.random() < 0.5
        extent = rng.uniform(0.54, 0.66)
        shade = 0.0 if background.free and not background.plain else rng.uniform(0.30, 0.50)
        floor = self._floor(scene, background, 0.88, 0.96)
        below = self._put(mount, extent, rng.uniform(0.44, 0.56), floor, flip=flip, shadow=shade, tilt=0.0)
        # The saddle in the mount's picture, then on the canvas.
        left, top, right, low = (float(v) for v in self.sprites.boxes[below.sprite])
        px = left + saddle[0] * (right - left)
        py = float(self.sprites.profiles[below.sprite][min(int(px), SIZE - 1)]) + saddle[1] * (low - top)
        sx = below.x + (px / SIZE - 0.5) * below.size * (-1 if flip else 1)
        sy = below.y + (py / SIZE - 0.5) * below.size
        sprite = self._look(rider, seated=True)
        if sprite in self.sprites.seated.values():
            size = extent * rng.uniform(0.74, 0.86)
            upper = self._put(rider, 0.3, sx, sy, flip=flip, sprite=sprite, tilt=0.0)
            x0, y0, x1, y1 = (float(v) / SIZE for v in self.sprites.boxes[sprite])
            upper.size = size
            upper.x = sx - (SEAT[0] - 0.5) * size * (-1 if flip else 1)
            upper.y = sy - (SEAT[1] - 0.5) * size
            if flip:
                x0, x1 = 1 - x1, 1 - x0
            upper.box = (
                upper.x + (x0 - 0.5) * size,
                upper.y + (y0 - 0.5) * size,
                upper.x + (x1 - 0.5) * size,
                upper.y + (y1 - 0.5) * size,
            )
            return [below, upper]
        size = extent * rng.uniform(0.52, 0.66)
        upper = self._put(rider, size, sx, sy + size * rng.uniform(0.03, 0.09), flip=flip, tilt=0.03)
        return [below, upper]
