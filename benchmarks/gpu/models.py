"""A model to measure: Stable Diffusion 2.1-base's architecture with random weights, and the engine that serves it.

Speed does not depend on what the weights know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kubediffusion.worker import testing
from kubediffusion.worker.engine import Engine, ImageTask, Load, Outcome, Picture, Shape, Ticket
from kubediffusion.worker.settings import Settings

STEPS = 25
SCHEDULER = "DPMSolverMultistepScheduler"

_PATIENCE = 3
"""Batches to run without anything being compiled before that counts as the end."""


def save_model(folder: Path, *, tiny: bool) -> None:
    """Save the model, unless it is there; a tiny one runs in seconds on a CPU too, to try a benchmark itself."""
    if (folder / "model_index.json").exists():
        return
    if tiny:
        testing.save_stable_diffusion(folder)
    else:
        _save_stable_diffusion_21(folder)


def _save_stable_diffusion_21(folder: Path) -> None:
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                hidden_act="gelu",
                bos_token_id=len(words) - 2,
                eos_token_id=len(words) - 1,
                pad_token_id=len(words) - 1,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer(
            vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
        ),
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(folder)


def settings(folder: Path, *, compiled: bool, limit: int, cache: Path | None = None) -> Settings:
    """Give the settings of a worker that serves the model.

    Args:
        folder: Where the model is.
        compiled: Compile in the background.
        limit: The most images in a batch.
        cache: Where what was compiled is kept.
    """
    return Settings(
        pod_name="benchmark",
        pod_namespace="benchmark",
        model_name="benchmark",
        bucket="benchmark",
        cache_dir=cache or folder / "cache",
        spec={"source": {"path": str(folder)}, "compile": compiled, "workers": {"maxBatchSize": limit}},
    )


def tasks(count: int, steps: Sequence[int] = (STEPS,), **shape: Any) -> tuple[ImageTask, ...]:
    """Give images, each with a prompt of its own; their steps take turns."""
    return tuple(
        ImageTask(
            Ticket("job", 1, index),
            f"a picture of number {index}",
            None,
            index,
            Shape(**{"steps": steps[index % len(steps)], "guidance": 7.5, "scheduler": SCHEDULER} | shape),
        )
        for index in range(count)
    )


class Watch:
    """A monitor with images in stock: whoever has room gets more."""

    def __init__(self, stock: Sequence[ImageTask] = ()) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.loads: list[Load] = []
        self._stock = list(stock)

    def wanted(self, _ticket: Ticket) -> bool:
        """Tell that every image is."""
        return True

    def stepped(self, _ticket: Ticket, _step: int, _total: int) -> None:
        """Ignore it: :meth:`ran` counts."""

    def ended(self, ticket: Ticket, outcome: Outcome) -> None:
        """Remember how an image ends."""
        self.outcomes[ticket.index] = outcome

    def more(self, room: int, _calls: int) -> tuple[ImageTask, ...]:
        """Give from the stock as many as there is room for."""
        given, self._stock = self._stock[:room], self._stock[room:]
        return tuple(given)

    def ran(self, load: Load) -> None:
        """Remember what a step was like."""
        self.loads.append(load)


def make(engine: Engine, images: Sequence[ImageTask], at_once: int) -> Watch:
    """Make images, so many at once.

    Raises:
        RuntimeError: One of them did not end well.
    """
    watch = Watch(images[at_once:])
    engine.run(tuple(images[:at_once]), watch)
    broken = [outcome for outcome in watch.outcomes.values() if not isinstance(outcome, Picture)]
    if broken or len(watch.outcomes) != len(images):
        raise RuntimeError(f"{len(watch.outcomes)} of {len(images)} images ended, {broken[:1]}")
    return watch


class Settling:
    """Tells when a batch size is as fast as it gets: compiled, or found out not to be.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._quiet = 0

    def after(self, watch: Watch, *, decoding: bool = True) -> bool:
        """Look at a batch that ran; whatever is left to compile, it has begun."""
        engine = self._engine
        if engine._compiler is None:
            return True
        decodes = all(graph.compiled for graph in engine._decoder._graphed._graphs.values()) or not decoding
        if all(load.compiled for load in watch.loads) and decodes:
            return True
        # Nobody compiles, and still it is not: it was refused, and the log says why.
        self._quiet = 0 if engine._compiler.busy else self._quiet + 1
        return self._quiet > _PATIENCE
