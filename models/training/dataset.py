"""Scenes by the hundred thousand: drawn on the CPU, composed and encoded on the device."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from .captions import caption, junk, naming, plain_prompt
from .compose import Composer, pack
from .sampler import Sampler
from .scenes import RELATIONS, Scene
from .subjects import subjects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from .data import Sprites

    Encode = Callable[[Tensor], Tensor]
    """Turns uint8 images [n, 3, h, w] into latents."""

    Tokenize = Callable[[list[str]], NDArray[np.uint16]]
    """Turns texts into token ids [n, 77]."""

CHUNK = 2000  # scenes drawn from one seed
Chunk = TypeVar("Chunk")


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


@dataclass
class DrawnPairs:
    """Scenes of two subjects, and what remains without one, as numbers and words.

    Attributes:
        both: What `compose.pack` returned of the scenes.
        rest: The same of the scenes that remain.
        texts: For each scene the prompt, the negative prompt, the wish, and what is refused; see `Pairs.ids`.
    """

    both: tuple[NDArray[np.float32], NDArray[np.float32]]
    rest: tuple[NDArray[np.float32], NDArray[np.float32]]
    texts: list[tuple[str, str, str, str]]


@dataclass
class Pairs:
    """What negative prompts are practised on, on the device.

    Attributes:
        both: Latents of scenes of two subjects, float16 [n, channels, height, width].
        rest: Latents of scenes without what the negative prompt names, alike.
        ids: Token ids, int16 [n, 77] each: a prompt that names both; a negative prompt; a prompt that names what is to
            be seen; and what is refused, empty where the negative prompt names nothing that a scene shows.
    """

    both: Tensor
    rest: Tensor
    ids: tuple[Tensor, Tensor, Tensor, Tensor]


NAMES_NOTHING = 0.2
"""Share of negative prompts such as "blurry, low quality", which must leave the picture alone."""


def draw(sprites: Sprites, number: int, seed: int, captions: int = 0, *, unseen: bool = False) -> Iterator[Drawn]:
    """Draw scenes and say them.

    Args:
        sprites: The pictures.
        number: How many scenes.
        seed: Source of chance.
        captions: Captions a scene.
        unseen: Held-out combinations instead of those for training.

    Returns:
        Chunks of at most `CHUNK` scenes.
    """
    return in_chunks(partial(_draw, captions=captions, unseen=unseen), sprites, number, seed)


def in_chunks(
    draw_chunk: Callable[[Sprites, int, int], Chunk], sprites: Sprites, number: int, seed: int
) -> Iterator[Chunk]:
    """Draw chunks of at most `CHUNK` on all cores; `draw_chunk` takes the pictures, a seed and a number."""
    chunks = [(seed * 1_000_003 + start, min(CHUNK, number - start)) for start in range(0, number, CHUNK)]
    # Drawing needs the boxes of the pictures and not their pixels, which would be copied to each process.
    bare = replace(sprites, pixels=np.empty((0, 0, 0, 4), np.uint8))
    workers = min(len(chunks), (os.cpu_count() or 1) - 1)
    if workers < 2:
        yield from (draw_chunk(bare, *chunk) for chunk in chunks)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
        drawing = [processes.submit(draw_chunk, bare, *chunk) for chunk in chunks]
        for future in drawing:
            yield future.result()


def _draw(sprites: Sprites, seed: int, number: int, *, captions: int, unseen: bool) -> Drawn:
    rng = Random(seed)  # noqa: S311 - scenes, no secrets
    sampler = Sampler(sprites, rng)
    scenes = [sampler.unseen() if unseen else sampler.training() for _ in range(number)]
    layers, places = pack(scenes)
    return Drawn(layers, places, *label(scenes), [[caption(s, rng) for _ in range(captions)] for s in scenes])


def draw_pairs(sprites: Sprites, seed: int, number: int) -> DrawnPairs:
    """Draw and say what negative prompts are practised on."""
    rng = Random(seed)  # noqa: S311 - scenes, no secrets
    sampler = Sampler(sprites, rng)
    both: list[Scene] = []
    rest: list[Scene] = []
    texts: list[tuple[str, str, str, str]] = []
    while len(both) < number:
        scene = sampler.training()
        if not scene.relation:
            continue
        prompt = plain_prompt(scene) if rng.random() < 0.3 else caption(scene, rng)
        if rng.random() < NAMES_NOTHING:
            remains, texts_of = scene, (prompt, junk(rng), prompt, "")
        else:
            kept = rng.randrange(2)
            refused = scene.items[1 - kept]
            remains = Scene(scene.background, scene.horizon, [scene.items[kept]])
            sampler.place(remains)
            negative = naming(refused, rng)
            texts_of = (prompt, negative, caption(remains, rng), negative)
        both.append(scene)
        rest.append(remains)
        texts.append(texts_of)
    return DrawnPairs(pack(both), pack(rest), texts)


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
        for piece in pieces(composer, part.layers, part.places, generator):
            images[at : at + len(piece)] = piece
            at += len(piece)
        shown.append(torch.from_numpy(part.shown))
        labels.append(torch.from_numpy(part.labels))
    return Pool(images, torch.cat(shown).to(composer.device), torch.cat(labels).to(composer.device))


def pieces(
    composer: Composer, layers: NDArray[np.float32], places: NDArray[np.float32], generator: torch.Generator
) -> Iterator[Tensor]:
    """Compose packed scenes, as many at once as the device takes: uint8 [up to 2000, 3, height, width]."""
    step = 2000 if composer.device.type == "cuda" else 50
    for i in range(0, len(places), step):
        yield composer(torch.from_numpy(layers[i : i + step]), torch.from_numpy(places[i : i + step]), generator)


def _encoded(pieces: Iterator[Tensor], encode: Encode) -> Tensor:
    """Return the latents of composed pieces, float16."""
    return torch.cat([encode(images).half() for piece in pieces for images in torch.split(piece, 500)])


def encode_scenes(
    composer: Composer, sprites: Sprites, number: int, seed: int, captions: int, encode: Encode, tokenize: Tokenize
) -> tuple[Tensor, Tensor]:
    """Compose scenes and keep their latents and captions only.

    Returns:
        Latents, float16 [n, channels, height, width], and token ids, int16 [n, captions, length], on the device.
    """
    generator = torch.Generator(composer.device).manual_seed(seed)
    latents: list[Tensor] = []
    ids: list[Tensor] = []
    for part in draw(sprites, number, seed, captions):
        latents.append(_encoded(pieces(composer, part.layers, part.places, generator), encode))
        tokens = tokenize([text for texts in part.captions for text in texts])
        ids.append(torch.from_numpy(tokens.astype(np.int16)).view(len(part.captions), captions, -1))
    return torch.cat(latents), torch.cat(ids).to(composer.device)


def encode_pairs(
    composer: Composer, sprites: Sprites, number: int, seed: int, encode: Encode, tokenize: Tokenize
) -> Pairs:
    """Compose what negative prompts are practised on, and keep latents and token ids only."""
    generator = torch.Generator(composer.device).manual_seed(seed)
    both: list[Tensor] = []
    rest: list[Tensor] = []
    ids: list[Tensor] = []
    for part in in_chunks(draw_pairs, sprites, number, seed):
        both.append(_encoded(pieces(composer, *part.both, generator), encode))
        rest.append(_encoded(pieces(composer, *part.rest, generator), encode))
        tokens = tokenize([text for texts in part.texts for text in texts])
        ids.append(torch.from_numpy(tokens.astype(np.int16)).view(len(part.texts), 4, -1))
    prompt, negative, wish, refused = torch.cat(ids).to(composer.device).unbind(1)
    return Pairs(torch.cat(both), torch.cat(rest), (prompt, negative, wish, refused))
