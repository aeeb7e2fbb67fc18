"""Scenes by the hundred thousand: drawn on the CPU, composed and encoded on the device."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch

from .captions import caption
from .compose import Composer, pack
from .scenes import RELATIONS, Sampler, Scene
from .subjects import subjects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from .data import Sprites

CHUNK = 2000  # scenes drawn from one seed


@dataclass
class Drawn:
    """Scenes as numbers and words.

    Attributes:
        layers: float32 [n, layers, fields], see `compose.pack`.
        places: float32 [n, 2].
        shown: uint8 [n, subjects]: 1 for each subject in the scene.
        labels: int64 [n, 3]: background; count, 0 to 2 for one to three, -1 for several kinds or none; relation.
        captions: For each scene several captions.
    """

    layers: NDArray[np.float32]
    places: NDArray[np.float32]
    shown: NDArray[np.uint8]
    labels: NDArray[np.int64]
    captions: list[list[str]]


# Two ways to say one picture: a picture alone cannot tell them apart.
_SAME = {"under": "above", "behind": "in front of"}


def label(scenes: list[Scene]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Write down what the judge should answer for scenes."""
    shown = np.zeros((len(scenes), len(subjects())), np.uint8)
    labels = np.full((len(scenes), 3), -1, np.int64)
    for i, scene in enumerate(scenes):
        shown[i, [s.index for s in scene.items]] = 1
        count = scene.count - 1 if len(scene.items) == 1 else -1
        relation = RELATIONS[scene.relation] if len(scene.items) < 3 else "next to"
        labels[i] = scene.background, count, RELATIONS.index(_SAME.get(relation, relation))
    return shown, labels


def draw(sprites: Sprites, number: int, seed: int, captions: int = 0, *, unseen: bool = False) -> Iterator[Drawn]:
    """Draw scenes and say them.

    Args:
        sprites: The pictures.
        number: How many scenes.
        seed: Source of chance.
        captions: Captions a scene.
        unseen: Held-out combinations instead of those for training.

    Yields:
        Chunks of at most `CHUNK` scenes.
    """
    chunks = [(seed * 1_000_003 + start, min(CHUNK, number - start)) for start in range(0, number, CHUNK)]
    # Drawing needs the boxes of the pictures and not their pixels, which would be copied to each process.
    bare = replace(sprites, pixels=np.empty((0, 0, 0, 4), np.uint8))
    workers = min(len(chunks), (os.cpu_count() or 1) - 1)
    if workers < 2:
        yield from (_draw(bare, *chunk, captions, unseen=unseen) for chunk in chunks)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
        drawing = [processes.submit(_draw, bare, *chunk, captions, unseen=unseen) for chunk in chunks]
        for future in drawing:
            yield future.result()


def _draw(sprites: Sprites, seed: int, number: int, captions: int, *, unseen: bool) -> Drawn:
    rng = Random(seed)  # noqa: S311 - scenes, no secrets
    sampler = Sampler(sprites, rng)
    scenes = [sampler.unseen() if unseen else sampler.training() for _ in range(number)]
    layers, places = pack(scenes)
    return Drawn(layers, places, *label(scenes), [[caption(s, rng) for _ in range(captions)] for s in scenes])


@dataclass
class Pool:
    """Composed scenes with the judge's answers, on the device.

    Attributes:
        images: uint8 [n, 3, size, size].
        shown: float [n, subjects].
        labels: int64 [n, 3].
    """

    images: Tensor
    shown: Tensor
    labels: Tensor


def compose_pool(composer: Composer, sprites: Sprites, number: int, seed: int, *, unseen: bool = False) -> Pool:
    """Compose scenes and keep their pixels."""
    generator = torch.Generator(composer.device).manual_seed(seed)
    images = torch.empty(number, 3, composer.size, composer.size, dtype=torch.uint8, device=composer.device)
    shown: list[Tensor] = []
    labels: list[Tensor] = []
    at = 0
    for part in draw(sprites, number, seed, unseen=unseen):
        for piece in _pieces(composer, part, generator):
            images[at : at + len(piece)] = piece
            at += len(piece)
        shown.append(torch.from_numpy(part.shown))
        labels.append(torch.from_numpy(part.labels))
    return Pool(images, torch.cat(shown).to(composer.device), torch.cat(labels).to(composer.device))


def _pieces(composer: Composer, part: Drawn, generator: torch.Generator) -> Iterator[Tensor]:
    step = 2000 if composer.device.type == "cuda" else 50
    for i in range(0, len(part.places), step):
        yield composer(
            torch.from_numpy(part.layers[i : i + step]), torch.from_numpy(part.places[i : i + step]), generator
        )


def encode_scenes(
    composer: Composer,
    sprites: Sprites,
    number: int,
    seed: int,
    captions: int,
    encode: Callable[[Tensor], Tensor],
    tokenize: Callable[[list[str]], NDArray[np.uint16]],
) -> tuple[Tensor, Tensor]:
    """Compose scenes and keep their latents and captions only.

    Returns:
        Latents, float16 [n, channels, height, width], and token ids, int16 [n, captions, length], on the device.
    """
    generator = torch.Generator(composer.device).manual_seed(seed)
    latents: Tensor | None = None
    ids: list[Tensor] = []
    at = 0
    for part in draw(sprites, number, seed, captions):
        for piece in _pieces(composer, part, generator):
            z = torch.cat([encode(images).half() for images in torch.split(piece, 500)])
            if latents is None:
                latents = torch.empty(number, *z.shape[1:], dtype=torch.float16, device=composer.device)
            latents[at : at + len(z)] = z
            at += len(z)
        tokens = tokenize([text for texts in part.captions for text in texts])
        ids.append(torch.from_numpy(tokens.astype(np.int16)).view(len(part.captions), captions, -1))
    if latents is None:
        raise ValueError("no scenes")
    return latents, torch.cat(ids).to(composer.device)
