"""Scores the flow-matching model's folder as the first model's is scored, and writes it and its sheets."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline

from .captions import plain_prompt
from .evaluate import Painter, Scores, unseen_scenes
from .export import tidy
from .flow import FlowModel, new_scheduler, text_length

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from .data import Sprites
    from .flow_data import Tokenizer
    from .settings import Settings

log = logging.getLogger(__name__)


def export(vae: Any, model: FlowModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder that `DiffusionPipeline.from_pretrained` loads with nothing else, float16, files under 16 MB."""
    kind: Any = FluxPipeline
    pipe = kind(
        scheduler=new_scheduler(),
        vae=vae.to("cpu", torch.float16),
        text_encoder=model.clip.to("cpu", torch.float16),
        tokenizer=tokenizer.clip,
        text_encoder_2=model.t5.to("cpu", torch.float16),
        tokenizer_2=tokenizer.clip,
        transformer=model.transformer.to("cpu", torch.float16),
    )
    pipe.save_pretrained(folder, safe_serialization=True, max_shard_size="15MB")
    tidy(folder)


@dataclass
class FlowPainter(Painter):
    """The flow-matching pipeline with the settings of the scores.

    Attributes:
        true_cfg: `true_cfg_scale` where there is a negative prompt.
        size: Width and height.
        length: Text tokens; None for the pipeline's own number.
    """

    true_cfg: float = 3.0
    size: tuple[int, int] = (256, 256)
    length: int | None = None

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negatives: Sequence[str] | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Return uint8 images [n, 3, h, w]; each has its own CPU generator, so that batches do not matter."""
        made: list[Tensor] = []
        given: dict[str, Any] = {} if self.length is None else {"max_sequence_length": self.length}
        for i in range(0, len(prompts), self.batch):
            if negatives is not None:
                given["negative_prompt"] = list(negatives[i : i + self.batch])
                given["true_cfg_scale"] = self.true_cfg
            result = self.pipe(
                list(prompts[i : i + self.batch]),
                width=self.size[0],
                height=self.size[1],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance if guidance is None else guidance,
                generator=[torch.Generator("cpu").manual_seed(s) for s in seeds[i : i + self.batch]],
                output_type="np",
                **given,
            )
            made.append(torch.from_numpy((result.images * 255).round().astype(np.uint8)).permute(0, 3, 1, 2))
        return torch.cat(made)


def load(folder: Path, device: str, settings: Settings) -> FlowPainter:
    """Load the folder with nothing but its path, float16 on a GPU."""
    kind: Any = DiffusionPipeline
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    pipe = kind.from_pretrained(folder, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    shape = settings.flow_evaluate
    width, height = settings.flow.sizes[0]
    return FlowPainter(pipe, shape.steps, shape.guidance, true_cfg=shape.true_cfg, size=(width, height))


class FlowScores(Scores):
    """All measurements of the flow-matching model's folder; see `Scores`."""

    SCHEDULERS = ()

    def __init__(self, settings: Settings, sprites: Sprites, folder: Path, judge_folder: Path, device: str) -> None:
        super().__init__(settings, sprites, folder, judge_folder, device, load(folder, device, settings))

    def everything(self) -> dict[str, Any]:
        """Take all scores, and those of other numbers of steps, of text tokens, and of other sizes."""
        table = super().everything()
        pairs = unseen_scenes(self._new_sampler(9), 100, lambda s: len(s.items) == 2)
        usual: Any = self.paint
        for name, options in (
            ("steps", [{"steps": n} for n in (4, 8, 15, 50)]),
            ("text tokens", [{"length": n} for n in (64, 128, 256)]),
            ("size", [{"size": (320, 192)}, {"size": (192, 320)}]),
            ("negative at true_cfg_scale", [{"true_cfg": s} for s in (2.0, 4.0)]),
        ):
            table[name] = {}
            for option in options:
                self.paint = replace(usual, **option)
                key = "x".join(str(v) for v in np.ravel(list(option.values())))
                if "true_cfg" in option:
                    table[name][key] = self.negative(100) | {"names nothing, both": self.junk(pairs)}
                else:
                    table[name][key] = self.guidance(usual.guidance, pairs)
        self.paint = usual
        return table

    def short(self, number: int = 24) -> dict[str, Any]:
        """Draw pairs of each size with as few text tokens as most of the training had."""
        usual: Any = self.paint
        table: dict[str, Any] = {"prompts": number}
        pairs = unseen_scenes(self._new_sampler(9), number, lambda s: len(s.items) == 2)
        for width, height in self.settings.flow.sizes:
            length = text_length(self.settings, width * height // 256)
            self.paint = replace(usual, size=(width, height), length=length, batch=4)
            table[f"{width}x{height}, {length} tokens"] = scores = self.guidance(usual.guidance, pairs)
            log.info("%dx%d with %d text tokens: %s", width, height, length, scores)
        self.paint = usual
        return table

    def teacher(self, scales: Sequence[float] = (1.0, 2.0, 3.0, 4.0, 5.0)) -> dict[str, Any]:
        """Take a few scores of a model that knows no embedded guidance yet, at scales of classifier-free guidance."""
        pairs = unseen_scenes(self._new_sampler(8), 200, lambda s: len(s.items) == 2)
        prompts, seeds = [plain_prompt(s) for s in pairs], range(3000, 3000 + len(pairs))
        usual: Any = self.paint
        table: dict[str, Any] = {}
        for scale in scales:
            self.paint = replace(usual, true_cfg=scale, length=self.settings.flow.length)
            images = self.paint(prompts, seeds, [""] * len(prompts), guidance=1.0)
            scores = self._judge(images, pairs)
            table[str(scale)] = {"both": scores["all_subjects"], "background": scores["background"]}
        self.paint = usual
        return table

    def glance(self) -> dict[str, Any]:
        """Take a few scores in a few seconds, of the same scenes each time."""
        self.sampler = self._new_sampler(8)
        pairs = unseen_scenes(self.sampler, 200, lambda s: len(s.items) == 2)
        usual: Any = self.paint
        table: dict[str, Any] = {f"pairs at {g}": self.guidance(g, pairs) for g in (1.0, 2.0, 3.5, 5.0, 7.5, 9.0)}
        self.paint = replace(usual, length=self.settings.flow.length)
        table["pairs at 3.5, short text"] = self.guidance(3.5, pairs)
        for scale in (2.0, 3.0, 4.0):
            self.paint = replace(usual, true_cfg=scale)
            self.sampler = self._new_sampler(8)
            table[f"negative at {scale}"] = self.negative(100) | {"junk": self.junk(pairs[:100])}
        self.paint = usual
        return table | {"diversity": self.diversity(8)}
