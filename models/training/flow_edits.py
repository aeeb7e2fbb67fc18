"""Scores edits by the flow-matching model: a mask that is painted anew, and pictures that are drawn from others.

Both go through diffusers' own pipelines, over the components of the same folder, and are measured on what those return:
nothing is pasted back over it.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline

from .captions import plain_prompt
from .evaluate import SEEN, unseen_scenes
from .export import sheet, small
from .flow_evaluate import FlowScores
from .scenes import Scene, held_out

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

MARGIN = 0.05  # how much larger than the subject a mask is, on each side
GRID = 16  # pixels: what a token covers, so that a mask cuts none
CLOSE = 2.0  # of 255


class Edits(FlowScores):
    """Measurements of edits; see `FlowScores`."""

    def _scenes(self, number: int) -> list[Scene]:
        """Draw scenes of one subject, held out, with their layers."""
        scenes = unseen_scenes(self.sampler, number, lambda s: len(s.items) == 1)
        for scene in scenes:
            scene.count = 1
        return scenes

    def _edited(self, kind: Any, images: Tensor, prompts: list[str], strength: float, masks: Tensor | None) -> Tensor:
        pipe = kind(**self.paint.pipe.components)
        pipe.set_progress_bar_config(disable=True)
        shape, out = self.settings.flow_evaluate, []
        height, width = images.shape[-2:]
        for i in range(0, len(prompts), 50):
            part = slice(i, i + 50)
            given: dict[str, Any] = {} if masks is None else {"mask_image": masks[part]}
            made = pipe(
                prompts[part],
                image=images[part].float() / 255,
                height=height,
                width=width,
                strength=strength,
                num_inference_steps=shape.steps,
                guidance_scale=shape.guidance,
                max_sequence_length=self.settings.flow.length,
                generator=[torch.Generator(self.device).manual_seed(i + k) for k in range(len(prompts[part]))],
                output_type="np",
                **given,
            ).images
            out.append(torch.from_numpy((made * 255).round().astype(np.uint8)).permute(0, 3, 1, 2))
        return torch.cat(out)

    def _masks(self, scenes: list[Scene], side: int) -> Tensor:
        """Return 1 around each scene's subject, a whole number of tokens: [n, 1, side, side]."""
        masks = torch.zeros(len(scenes), 1, side, side)
        for mask, scene in zip(masks, scenes, strict=True):
            left, top, right, bottom = scene.layers[-1].box
            x0, y0 = (max(int((v - MARGIN) * side) // GRID * GRID, 0) for v in (left, top))
            x1, y1 = (min(-(-int((v + MARGIN) * side) // GRID) * GRID, side) for v in (right, bottom))
            mask[:, y0:y1, x0:x1] = 1
        return masks

    def _sees(self, images: Tensor, scenes: list[Scene]) -> dict[str, float]:
        answers = self.judge.answers(images)
        column = torch.tensor([s.items[0].index for s in scenes]).view(-1, 1)
        subject = answers["subjects"].sigmoid().gather(1, column).squeeze(1) >= SEEN
        background = answers["background"].argmax(1) == torch.tensor([s.background for s in scenes])
        return {
            "subject": round(float(subject.float().mean()), 4),
            "background": round(float(background.float().mean()), 4),
        }

    def inpaint(self, number: int = 100, strength: float = 1.0) -> tuple[dict[str, Any], list[Tensor]]:
        """Paint another subject over the one that a composed scene shows."""
        self.sampler = self._new_sampler(10)
        scenes = self._scenes(number)
        before = self.composed(scenes)
        rng = Random(self.settings.seed)  # noqa: S311 - scenes, no secrets
        wished = [Scene(s.background, s.horizon, [rng.choice(self.sampler.all)]) for s in scenes]
        masks = self._masks(scenes, before.shape[-1])
        after = self._edited(FluxInpaintPipeline, before, [plain_prompt(s) for s in wished], strength, masks)
        outside = (masks == 0).expand_as(before)
        kept = [float((a.float() - b.float()).abs()[o].mean()) for a, b, o in zip(after, before, outside, strict=True)]
        table = {
            "images": number,
            "strength": strength,
            "inside": self._sees(after, wished),
            "outside": round(float(np.mean(kept)), 3),
            "outside_highest": round(max(kept), 3),
            "outside_close": round(float(np.mean([k <= CLOSE for k in kept])), 4),
            "mask": round(float(masks.mean()), 3),
        }
        return table, [before[:8], after[:8]]

    def image_to_image(self, number: int = 100) -> tuple[dict[str, Any], list[Tensor]]:
        """Draw composed scenes again, lightly with their own prompt, and strongly with another place's."""
        self.sampler = self._new_sampler(11)
        scenes = self._scenes(number)
        before = self.composed(scenes)
        again = self._edited(FluxImg2ImgPipeline, before, [plain_prompt(s) for s in scenes], 0.5, None)
        moved = [Scene(b.background, b.horizon, a.items) for a, b in zip(scenes, scenes[1:] + scenes[:1], strict=True)]
        after = self._edited(FluxImg2ImgPipeline, before, [plain_prompt(s) for s in moved], 0.9, None)
        table = {
            "images": number,
            "own prompt, strength 0.5": self._sees(again, scenes) | {"difference": self._difference(again, before)},
            "another place, strength 0.9": self._sees(after, moved) | {"difference": self._difference(after, before)},
            "unlike pictures": self._difference(before, before.roll(1, 0)),
            "held_out": round(float(np.mean([held_out(s.items, s.background) for s in moved])), 2),
        }
        return table, [before[:8], again[:8], after[:8]]

    def _difference(self, a: Tensor, b: Tensor) -> float:
        return round(float((a.float() - b.float()).abs().mean()), 2)

    def edits(self, folder: Path, number: int = 100) -> dict[str, Any]:
        """Take all of them, and write a sheet: scenes, painted anew, scenes, drawn again, drawn elsewhere."""
        inpainted, first = self.inpaint(number)
        redrawn, second = self.image_to_image(number)
        small(sheet(torch.cat(first + second), 8)).save(folder / "edits.png", optimize=True)
        return {"inpaint": inpainted, "image_to_image": redrawn}
