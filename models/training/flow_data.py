"""Scenes for the flow-matching model: drawn to files on the CPU while the device does other things, then encoded."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import dataset
from .canvas import spread
from .captions import caption, plain_prompt
from .compose import Composer, pack
from .sampler import Sampler
from .text import pipeline_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from .data import Sprites
    from .scenes import Scene
    from .settings import Settings

log = logging.getLogger(__name__)
REDRAWN = 0.4  # share of scenes without a relation that are drawn again, since relations are what is hard to learn
PLAIN = 0.15  # share of scenes one of whose captions is the plain one


@dataclass
class Tokenizer:
    """Texts to token ids. Both text encoders read the same ones: the pad token is the one that ends a text.

    Args:
        folder: A pipeline folder, of which the CLIP tokenizer is used.
        length: Tokens that are kept.
    """

    folder: Path
    length: int

    def __post_init__(self) -> None:
        self.clip = pipeline_tokenizer(self.folder)

    @property
    def end(self) -> int:
        """The token that ends a text and pads it."""
        return int(self.clip.eos_token_id)

    def __call__(self, texts: list[str]) -> NDArray[np.int16]:
        """Return token ids [n, length]."""
        ids = self.clip(texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="np")
        return np.asarray(ids.input_ids, np.int16)


@dataclass
class Sizes:
    """Scenes of one size on the device.

    Attributes:
        latents: Packed as the pipeline packs them, float16 [n, tokens, 4·channels].
        ids: int16 [n, captions, length].
        height: In tokens.
        width: In tokens.
    """

    latents: Tensor
    ids: Tensor
    height: int
    width: int


def _scene(sampler: Sampler, rng: Random) -> Scene:
    scene = sampler.training()
    return scene if scene.relation or rng.random() >= REDRAWN else sampler.training()


def _draw_file(
    sprites: Sprites,
    path: Path,
    seed: int,
    number: int,
    canvas: tuple[float, float],
    captions: int,
    tokens: tuple[Path, int],
) -> None:
    """Draw scenes, say them, and write layers, places and token ids."""
    tokenize = Tokenizer(*tokens)
    rng = Random(seed)  # noqa: S311 - scenes, no secrets
    sampler = Sampler(sprites, rng)
    scenes = [_scene(sampler, rng) for _ in range(number)]
    texts: list[str] = []
    for scene in scenes:
        spread(scene, sprites, *canvas, rng)
        said = [caption(scene, rng) for _ in range(captions)]
        if scene.items and len(scene.items) < 3 and rng.random() < PLAIN:
            said[0] = plain_prompt(scene)
        texts += said
    layers, places = pack(scenes)
    ids = tokenize(texts).reshape(number, captions, -1)
    _write(path, layers=layers, places=places, ids=ids)


def _draw_pairs_file(sprites: Sprites, path: Path, seed: int, number: int, tokens: tuple[Path, int]) -> None:
    """Draw what negative prompts are practised on."""
    tokenize = Tokenizer(*tokens)
    drawn = dataset.draw_pairs(sprites, seed, number)
    ids = tokenize([text for texts in drawn.texts for text in texts]).reshape(number, 4, -1)
    (both, places), (rest, rest_places) = drawn.both, drawn.rest
    _write(path, both=both, places=places, rest=rest, rest_places=rest_places, ids=ids)


def _write(path: Path, **arrays: Any) -> None:
    fresh = path.with_suffix(".new.npz")
    np.savez(fresh, **arrays)
    fresh.replace(path)


def draw_all(settings: Settings, sprites: Sprites, words: Path) -> None:
    """Draw every scene and every pair to files in the work folder, skipping those that are there.

    Args:
        settings: The configuration.
        sprites: The pictures.
        words: A pipeline folder, for its tokenizer.
    """
    began = time.monotonic()
    shape = settings.flow
    folder = settings.work / "drawn"
    folder.mkdir(exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokens = (words, shape.length)
    bare = replace(sprites, pixels=np.empty((0, 0, 0, 4), np.uint8))
    jobs: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    for k, (width, height) in enumerate(shape.sizes):
        number = shape.others if k else shape.scenes
        canvas = (width / min(width, height), height / min(width, height))
        for start in range(0, number, dataset.CHUNK):
            path = folder / f"{width}x{height}-{start:07d}.npz"
            many = min(dataset.CHUNK, number - start)
            seed = (settings.seed + 30 + k) * 1_000_003 + start
            jobs.append((_draw_file, (bare, path, seed, many, canvas, shape.captions, tokens)))
    for start in range(0, settings.distil.pairs, dataset.CHUNK):
        many = min(dataset.CHUNK, settings.distil.pairs - start)
        seed = (settings.seed + 40) * 1_000_003 + start
        jobs.append((_draw_pairs_file, (bare, folder / f"pairs-{start:07d}.npz", seed, many, tokens)))
    jobs = [(work, given) for work, given in jobs if not given[1].exists()]
    workers = max((os.cpu_count() or 1) - 4, 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
        for done in [processes.submit(work, *given) for work, given in jobs]:
            done.result()
    (folder / "all").touch()
    log.info("drew %d files in %.0f s", len(jobs), time.monotonic() - began)


def packed(latents: Tensor) -> Tensor:
    """Fold patches of two by two latents into tokens, [n, height / 2 · width / 2, 4·channels], as FluxPipeline does."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def encode_size(
    settings: Settings,
    sprites: Sprites,
    device: str,
    size: tuple[int, int],
    encode: Callable[[Tensor], Tensor],
    rank: int,
    world: int,
) -> Sizes:
    """Compose and encode this process's share of the scenes of one size."""
    width, height = size
    composer = Composer(sprites, device, min(size), width, height)
    generator = torch.Generator(device).manual_seed(settings.seed + 50 + rank)
    files = sorted((settings.work / "drawn").glob(f"{width}x{height}-*.npz"))[rank::world]
    latents: list[Tensor] = []
    ids: list[Tensor] = []
    for path in files:
        with np.load(path) as drawn:
            latents += _encoded(composer, drawn["layers"], drawn["places"], generator, encode)
            ids.append(torch.from_numpy(drawn["ids"]))
    return Sizes(torch.cat(latents), torch.cat(ids).to(device), height // 16, width // 16)


def _encoded(
    composer: Composer,
    layers: NDArray[np.float32],
    places: NDArray[np.float32],
    generator: torch.Generator,
    encode: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    for piece in dataset.pieces(composer, layers, places, generator):
        for images in torch.split(piece, 500):
            yield packed(encode(images)).half()


def encode_pairs(
    settings: Settings, sprites: Sprites, device: str, encode: Callable[[Tensor], Tensor], rank: int, world: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compose and encode this process's share of the pairs.

    Returns:
        Packed latents of both subjects and of what remains, [n, tokens, 4·channels] each; and token ids
        [n, 4, length] of prompt, negative prompt, wish and what is refused (see `dataset.Pairs`).
    """
    composer = Composer(sprites, device, settings.data.size)
    generator = torch.Generator(device).manual_seed(settings.seed + 60 + rank)
    both: list[Tensor] = []
    rest: list[Tensor] = []
    ids: list[Tensor] = []
    for path in sorted((settings.work / "drawn").glob("pairs-*.npz"))[rank::world]:
        with np.load(path) as drawn:
            both += _encoded(composer, drawn["both"], drawn["places"], generator, encode)
            rest += _encoded(composer, drawn["rest"], drawn["rest_places"], generator, encode)
            ids.append(torch.from_numpy(drawn["ids"]))
    return torch.cat(both), torch.cat(rest), torch.cat(ids).to(device)
