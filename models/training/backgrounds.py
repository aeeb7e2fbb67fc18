# ruff: noqa: E501 - tables of words, one line a thing
"""The places: by what words, by which painter, where the ground begins, in what light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import painters

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .brush import Brush


@dataclass(frozen=True)
class Background:
    """A place or a plain colour.

    Attributes:
        name: The word the scores use.
        phrases: How captions say it after a subject.
        nouns: How captions say it alone.
        paint: The painter.
        horizon: Range of the ground's upper edge.
        light: Factors on red, green and blue of what stands there.
        free: Whether subjects float instead of standing.
        plain: Whether it is one colour.
    """

    name: str
    phrases: tuple[str, ...]
    nouns: tuple[str, ...]
    paint: Callable[[Brush], Tensor]
    horizon: tuple[float, float] = (0.62, 0.74)
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    free: bool = False
    plain: bool = False


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("/"))


def _scene(
    name: str,
    phrases: str,
    nouns: str,
    paint: Callable[[Brush], Tensor],
    horizon: tuple[float, float] = (0.62, 0.74),
    light: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    free: bool = False,
) -> Background:
    return Background(name, _words(phrases), _words(nouns), paint, horizon, light, free)


def _colour(name: str, value: str, *others: str) -> Background:
    words = (name, *others)
    phrases = [
        f"{a} {w} {b}".replace("  ", " ").strip()
        for w in words
        for a, b in (
            ("on a", "background"),
            ("on a plain", "background"),
            ("against a", "background"),
            ("in front of a", "wall"),
            ("on", ""),
        )
    ]
    nouns = [f"a {w} background" for w in words] + [f"a plain {w} background" for w in words]

    def fix(text: str) -> str:
        return text.replace("a orange", "an orange")

    return Background(
        name,
        tuple(map(fix, phrases)),
        tuple(map(fix, nouns)),
        painters.plain(value),
        (0.70, 0.80),
        free=True,
        plain=True,
    )


BACKGROUNDS: tuple[Background, ...] = (
    _scene("moon", "on the moon/on the moon/on the lunar surface/on the surface of the moon", "the moon/the lunar surface", painters.moon, (0.64, 0.76), (0.97, 0.97, 1.0)),
    _scene("mars", "on mars/on the red planet/on planet mars", "mars/the red planet", painters.mars, (0.64, 0.76), (1.02, 0.95, 0.90)),
    _scene("beach", "on the beach/at the beach/on a sandy beach/by the sea/at the seaside", "a beach/the beach/a sandy beach", painters.beach, (0.66, 0.76)),
    _scene("forest", "in the forest/in a forest/in the woods/in a pine forest", "a forest/the woods", painters.forest, (0.66, 0.76), (0.97, 1.0, 0.95)),
    _scene("city", "in the city at night/in a city at night/downtown at night/on a street at night/in the city", "a city at night/the city at night/a city skyline at night", painters.city, (0.68, 0.78), (0.92, 0.92, 1.0)),
    _scene("snow", "in the snow/in snow/on a snowy day/in a snowy field/in winter", "a snowy field/a winter landscape/snow", painters.snow, (0.62, 0.74)),
    _scene("desert", "in the desert/in a desert/on a sand dune/among sand dunes", "a desert/the desert/sand dunes", painters.desert, (0.60, 0.70), (1.03, 1.0, 0.95)),
    _scene("underwater", "underwater/under water/under the sea/in the ocean/at the bottom of the sea", "the ocean floor/an underwater scene/the bottom of the sea", painters.underwater, (0.76, 0.84), (0.86, 0.97, 1.04), free=True),
    _scene("space", "in space/in outer space/floating in space/among the stars/in the galaxy", "outer space/space/a galaxy", painters.space, (0.7, 0.7), (0.98, 0.96, 1.02), free=True),
    _scene("meadow", "in a meadow/in a green meadow/on the grass/in a field/on a green hill/in the park", "a meadow/a green meadow/a field of flowers", painters.meadow, (0.60, 0.72)),
    _scene("sunset", "at sunset/at dusk/in the sunset/under a sunset sky/in the evening", "a sunset/a sunset over the sea", painters.sunset, (0.58, 0.66), (1.04, 0.93, 0.88)),
    _scene("rain", "in the rain/on a rainy day/in a rainy street/in rainy weather", "a rainy day/rain/a rainy street", painters.rain, (0.66, 0.76), (0.94, 0.97, 1.0)),
    _scene("room", "in a room/in the living room/indoors/at home/in a house", "a room/a living room/an empty room", painters.room, (0.66, 0.74)),
    _scene("mountains", "in the mountains/among the mountains/in the alps/in the high mountains", "mountains/snowy mountains/the alps", painters.mountains, (0.66, 0.74)),
    _scene("sky", "in the sky/in the clouds/among the clouds/up in the sky/above the clouds", "the sky/a blue sky/clouds in the sky", painters.sky, (0.7, 0.7), free=True),
    _scene("autumn", "in autumn/in an autumn park/among autumn trees/in the fall/in an autumn forest", "an autumn park/autumn trees/an autumn forest", painters.autumn, (0.66, 0.76), (1.02, 0.99, 0.95)),
    _scene("aurora", "under the northern lights/under the aurora/in the arctic night/under an aurora", "the northern lights/an aurora/the aurora", painters.aurora, (0.68, 0.78), (0.90, 0.96, 1.0)),
    _colour("red", "#d8353f"),
    _colour("orange", "#f78a2c"),
    _colour("yellow", "#f7cf3f"),
    _colour("green", "#4caf62"),
    _colour("blue", "#3f73e0"),
    _colour("purple", "#8656c9", "violet"),
    _colour("pink", "#f39bbd"),
    _colour("white", "#f3f3f5"),
    _colour("black", "#26262c"),
    _colour("gray", "#9a9ca3", "grey"),
    _colour("teal", "#2aa9a6", "turquoise"),
    _colour("brown", "#8f6145"),
)  # fmt: skip
