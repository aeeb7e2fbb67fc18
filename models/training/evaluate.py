# ruff: noqa: E501 - the report is a table
"""Scores the exported folder, as a user would load it, with the judge; prints the table that the model card quotes."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from .backgrounds import BACKGROUNDS
from .captions import SEED_PROMPT, article, plain_prompt
from .compose import Composer, pack
from .dataset import Pool, label
from .judging import accuracy, judge_module
from .sampler import Sampler
from .scenes import RELATIONS, Scene, held_out
from .vae import psnr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from .data import Sprites
    from .settings import Settings

log = logging.getLogger(__name__)
JUNK = "blurry, low quality, worst quality, bad anatomy, deformed, ugly, watermark"
SEEN = 0.5  # a subject is there when the judge holds it more likely than not


@dataclass
class Painter:
    """The pipeline with the settings of the scores.

    Attributes:
        pipe: The loaded pipeline.
        steps: Denoising steps.
        guidance: Guidance scale.
        batch: Images at once.
    """

    pipe: Any
    steps: int
    guidance: float
    batch: int = 100

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negatives: Sequence[str] | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Return uint8 images [n, 3, h, w]; each has its own CPU generator, so that batches do not matter."""
        made: list[Tensor] = []
        for i in range(0, len(prompts), self.batch):
            result = self.pipe(
                list(prompts[i : i + self.batch]),
                negative_prompt=list(negatives[i : i + self.batch]) if negatives else None,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance if guidance is None else guidance,
                generator=[torch.Generator("cpu").manual_seed(s) for s in seeds[i : i + self.batch]],
                output_type="np",
            )
            made.append(torch.from_numpy((result.images * 255).round().astype(np.uint8)).permute(0, 3, 1, 2))
        return torch.cat(made)


def load(folder: Path, device: str, settings: Settings, scheduler: str | None = None) -> Painter:
    """Load the folder with nothing but its path, float16 on a GPU.

    Args:
        folder: The pipeline.
        device: Where to run.
        settings: The configuration.
        scheduler: Another scheduler's class in diffusers, configured by the shipped one.
    """
    dtype = torch.float16 if device == "cuda" else torch.float32
    kind: Any = DiffusionPipeline
    pipe = kind.from_pretrained(folder, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        import diffusers

        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    return Painter(pipe, settings.evaluate.steps, settings.evaluate.guidance)


def unseen_scenes(sampler: Sampler, number: int, wanted: Callable[[Scene], bool]) -> list[Scene]:
    """Draw held-out scenes that a test wants."""
    out: list[Scene] = []
    while len(out) < number:
        scene = sampler.candidate()
        scene.size = scene.side = ""
        if scene.items and held_out(scene.items, scene.background) and wanted(scene):
            out.append(scene)
    return out


def _distance(images: Tensor) -> float:
    """Return the mean over pairs of images of the mean absolute difference of their pixels, in 0..255."""
    x = images.float().flatten(1)
    return float(torch.pdist(x, p=1).mean() / x.shape[1])


class Scores:
    """All measurements of one folder.

    `SCHEDULERS` are others that a job can make from the shipped one's configuration.

    Args:
        settings: The configuration.
        sprites: The pictures, for composed scenes to compare with.
        folder: The pipeline.
        judge_folder: The judge.
        device: Where to run.
        paint: The loaded pipeline, where it is not the first model's.
    """

    SCHEDULERS: tuple[str, ...] = ("DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler")

    def __init__(
        self,
        settings: Settings,
        sprites: Sprites,
        folder: Path,
        judge_folder: Path,
        device: str,
        paint: Painter | None = None,
    ) -> None:
        self.settings = settings
        self.device = device
        self.judge: Any = judge_module().Judge(judge_folder, device)  # type: ignore[attr-defined,unused-ignore]
        self.about = json.loads((judge_folder / "judge.json").read_text(encoding="utf-8"))
        self.paint = paint or load(folder, device, settings)
        self.composer = Composer(sprites, device, settings.data.size)
        self.sprites = sprites
        self.sampler = self._new_sampler(7)
        self.generator = torch.Generator(device).manual_seed(settings.seed + 7)

    def composed(self, scenes: list[Scene]) -> Tensor:
        """Compose scenes, on the CPU."""
        for scene in scenes:
            self.sampler.place(scene)
        parts = [pack(scenes[i : i + 100]) for i in range(0, len(scenes), 100)]
        return torch.cat(
            [self.composer(torch.from_numpy(a), torch.from_numpy(b), self.generator).cpu() for a, b in parts]
        )

    def _judge(self, images: Tensor, scenes: list[Scene]) -> dict[str, Any]:
        answers = self.judge.answers(images)
        shown, labels = label(scenes)
        table: dict[str, Any] = accuracy(answers, Pool(images, torch.from_numpy(shown), torch.from_numpy(labels)))
        seen = answers["subjects"].sigmoid() >= SEEN
        table["all_subjects"] = round(float((seen | ~torch.from_numpy(shown).bool()).all(1).float().mean()), 4)
        return table

    def generated(
        self, scenes: list[Scene], seed: int = 1000, parts: dict[int, list[int]] | None = None
    ) -> dict[str, Any]:
        """Generate the plain prompts of scenes and judge them; judge composed scenes of the same kind beside them."""
        images = self.paint([plain_prompt(s) for s in scenes], range(seed, seed + len(scenes)))
        table = {"generated": self._judge(images, scenes), "composed": self._judge(self.composed(scenes), scenes)}
        for relation, rows in (parts or {}).items():
            scores = self._judge(images[rows], [scenes[i] for i in rows])
            table[RELATIONS[relation]] = {"both": scores["all_subjects"], "relation": scores["relation"]}
        return table

    def everything(self) -> dict[str, Any]:
        """Take all scores."""
        began = time.monotonic()
        wanted = self.settings.evaluate
        single = unseen_scenes(self.sampler, wanted.subjects, lambda s: len(s.items) == 1)
        for scene in single:
            scene.count = 1
        table: dict[str, Any] = {"judge": self.about.get("held_out", {}), "single": self.generated(single)}
        share = wanted.relations // (len(RELATIONS) - 1)
        pairs = [
            scene
            for relation in range(1, len(RELATIONS))
            for scene in unseen_scenes(self.sampler, share, lambda s, r=relation: s.relation == r)  # type: ignore[misc]
        ]
        table["relation"] = self.generated(
            pairs,
            3000,
            parts={r: [i for i, s in enumerate(pairs) if s.relation == r] for r in range(1, len(RELATIONS))},
        )
        counts = unseen_scenes(self.sampler, wanted.counts, lambda s: len(s.items) == 1)
        for i, scene in enumerate(counts):
            scene.count = i % 3 + 1
        table["count"] = self.generated(counts, 5000)
        table["negative"] = self.negative(wanted.negatives)
        table["negative_names_nothing"] = self.junk(pairs[:: _stride(len(pairs))])
        table["diversity"] = self.diversity()
        table["seed_prompt"] = self.seed_prompt()
        table["unknown_word"] = self.unknown_word(single[:100])
        table["schedulers"] = {name: self.scheduler(name, single[:40]) for name in self.SCHEDULERS}
        table["guidance"] = {
            str(g): self.guidance(g, pairs[:: max(len(pairs) // 50, 1)]) for g in (3.0, 5.0, 9.0, 12.0)
        }
        table["vae_psnr"] = self.psnr()
        log.info("scored in %.0f s", time.monotonic() - began)
        return table

    def _new_sampler(self, seed: int) -> Sampler:
        return Sampler(self.sprites, Random(self.settings.seed + seed))  # noqa: S311 - scenes, no secrets

    def glance(self) -> dict[str, Any]:
        """Take a few scores in a few seconds, of the same scenes each time."""
        self.sampler = self._new_sampler(8)
        pairs = unseen_scenes(self.sampler, 100, lambda s: len(s.items) == 2)
        table: dict[str, Any] = {f"pairs at {g}": self.guidance(g, pairs) for g in (5.0, 7.5, 9.0, 12.0)}
        return table | {"negative": self.negative(100), "junk": self.junk(pairs), "diversity": self.diversity(8)}

    def negative(self, number: int) -> dict[str, float]:
        """Name a subject of the prompt in the negative prompt, and see how often that takes it away.

        The hardest case: the prompt itself asks for two subjects, and the negative prompt names the second of them.
        """
        pairs = unseen_scenes(self.sampler, number, lambda s: s.relation in {2, 3, 4, 6, 7})
        prompts = [plain_prompt(s) for s in pairs]
        seeds = range(9000, 9000 + number)
        column = torch.tensor([s.items[1].index for s in pairs]).view(-1, 1)
        first = torch.tensor([s.items[0].index for s in pairs]).view(-1, 1)
        before = self.judge.answers(self.paint(prompts, seeds))["subjects"].sigmoid()
        negatives = [f"{article(s.items[1].name)} {s.items[1].name}" for s in pairs]
        after = self.judge.answers(self.paint(prompts, seeds, negatives))["subjects"].sigmoid()
        there = before.gather(1, column).squeeze(1) >= SEEN
        gone = after.gather(1, column).squeeze(1) < SEEN
        stays = after.gather(1, first).squeeze(1) >= SEEN
        return {
            "prompts": number,
            "taken_away": round(float(gone[there].float().mean()), 4),
            "other_stays": round(float(stays[there].float().mean()), 4),
        }

    def junk(self, scenes: list[Scene]) -> float:
        """Name what no scene shows in the negative prompt, as people do, and see both subjects all the same."""
        negatives = [JUNK] * len(scenes)
        return float(
            self._judge(
                self.paint([plain_prompt(s) for s in scenes], range(3000, 3000 + len(scenes)), negatives), scenes
            )["all_subjects"]
        )

    def diversity(self, prompts: int = 20, seeds: int = 10) -> dict[str, float]:
        """Compare the spread of ten seeds with that of ten composed scenes, for each of some prompts."""
        scenes = [self.sampler.candidate() for _ in range(4 * prompts)]
        scenes = [s for s in scenes if s.items and not s.size and not s.side and len(s.items) < 3][: prompts - 1]
        scenes.append(self._star())
        ratios, star = [], 0.0
        for scene in scenes:
            made = self.paint([plain_prompt(scene)] * seeds, range(seeds))
            again = [Scene(scene.background, 0.7, scene.items, scene.relation, scene.count) for _ in range(seeds)]
            star = _distance(made) / _distance(self.composed(again))
            ratios.append(star)
        return {
            "prompts": len(scenes),
            "mean_ratio": round(float(np.mean(ratios)), 3),
            "lowest": round(min(ratios), 3),
            "seed_prompt": round(star, 3),
        }

    def _star(self) -> Scene:
        names = {s.name: s for s in self.sampler.all}
        moon = next(i for i, b in enumerate(BACKGROUNDS) if b.name == "moon")
        return Scene(moon, 0.7, [names["astronaut"], names["horse"]], RELATIONS.index("riding"))

    def seed_prompt(self) -> dict[str, float]:
        """Draw the demo's own prompt with seeds 0 to 19 at guidance 9."""
        images = self.paint([SEED_PROMPT] * 20, range(20), guidance=9.0)
        scores = self._judge(images, [self._star()] * 20)
        return {"both": scores["all_subjects"], "background": scores["background"], "relation": scores["relation"]}

    def unknown_word(self, scenes: list[Scene]) -> float:
        """Put a word the model never saw before a prompt."""
        words = (
            "flibbertigibbet",
            "Zeitgeist",
            "xylographic",
            "hyperreal",
            "gnocchi",
            "ineffable",
            "Wabi-sabi",
            "42nd",
        )
        prompts = [f"{words[i % len(words)]} {plain_prompt(s)}" for i, s in enumerate(scenes)]
        return float(self._judge(self.paint(prompts, range(11000, 11000 + len(scenes))), scenes)["all_subjects"])

    def scheduler(self, name: str, scenes: list[Scene]) -> dict[str, float]:
        """Draw with another scheduler made from the shipped configuration."""
        import diffusers

        kept = self.paint.pipe.scheduler
        self.paint.pipe.scheduler = getattr(diffusers, name).from_config(kept.config)
        scores = self._judge(self.paint([plain_prompt(s) for s in scenes], range(1000, 1000 + len(scenes))), scenes)
        self.paint.pipe.scheduler = kept
        return {"subject": scores["all_subjects"], "background": scores["background"]}

    def guidance(self, scale: float, scenes: list[Scene]) -> dict[str, float]:
        """Draw relations at another guidance scale."""
        images = self.paint([plain_prompt(s) for s in scenes], range(3000, 3000 + len(scenes)), guidance=scale)
        scores = self._judge(images, scenes)
        return {"both": scores["all_subjects"], "background": scores["background"]}

    def psnr(self, number: int = 500) -> float:
        """Reconstruct composed scenes of held-out combinations."""
        scenes = unseen_scenes(self.sampler, number, lambda _: True)
        return round(psnr(self.paint.pipe.vae, self.composed(scenes).to(self.device)), 2)


def _stride(number: int) -> int:
    """Return how to pick about a hundred."""
    return max(number // 100, 1)


def report(table: dict[str, Any]) -> str:
    """Write the scores as the table of the model card."""
    single, pair, count = table["single"], table["relation"], table["count"]
    both_places = (
        single["generated"]["background"] * single["generated"]["images"]
        + pair["generated"]["background"] * pair["generated"]["images"]
    ) / (single["generated"]["images"] + pair["generated"]["images"])
    rows = [
        ("subject", "≥ 95 %", f"{single['generated']['all_subjects']:.1%}", f"{single['composed']['all_subjects']:.1%}", single["generated"]["images"]),
        ("both subjects of a relation", "≥ 85 %", f"{pair['generated']['all_subjects']:.1%}", f"{pair['composed']['all_subjects']:.1%}", pair["generated"]["images"]),
        ("background", "≥ 98 %", f"{both_places:.1%}", f"{single['composed']['background']:.1%}", single["generated"]["images"] + pair["generated"]["images"]),
        ("count of one to three", "≥ 75 %", f"{count['generated']['count']:.1%}", f"{count['composed']['count']:.1%}", count["generated"]["images"]),
        ("negative prompt takes away", "≥ 50 %", f"{table['negative']['taken_away']:.1%}", "", table["negative"]["prompts"]),
        ("both subjects, negative prompt names nothing", "", f"{table['negative_names_nothing']:.1%}", "", len(range(0, pair["generated"]["images"], _stride(pair["generated"]["images"])))),
        ("relation itself", "", f"{pair['generated']['relation']:.1%}", f"{pair['composed']['relation']:.1%}", pair["generated"]["images"]),
        ("VAE reconstruction", "≥ 32 dB", f"{table['vae_psnr']:.1f} dB", "", 500),
        ("diversity against composed scenes", "≥ 0.5", f"{table['diversity']['mean_ratio']:.2f}", "1", table["diversity"]["prompts"]),
        ("seed prompt, seeds 0 to 19: both subjects", "", f"{table['seed_prompt']['both']:.0%}", "", 20),
        ("subject, with an unknown word", "", f"{table['unknown_word']:.1%}", "", 100),
    ]  # fmt: skip
    lines = ["| score | wanted | measured | composed scenes | prompts |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])
