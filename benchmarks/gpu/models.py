"""Models to measure: the architectures of Stable Diffusion with random weights, and the engine that serves them.

Speed does not depend on what the weights know.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from kubediffusion.worker import testing
from kubediffusion.worker.engine import (
    ClosedBatchMonitor,
    Engine,
    EntryLimit,
    ImageId,
    ImageOutput,
    ImageRequest,
    Outcome,
    SamplingParameters,
    StepStats,
)
from kubediffusion.worker.settings import Settings

STEPS = 25
SCHEDULER = "DPMSolverMultistepScheduler"


def save_model(folder: Path, architecture: str) -> None:
    """Save a model, unless it is there.

    Args:
        folder: Where.
        architecture: One of :data:`ARCHITECTURES`.
    """
    if not (folder / "model_index.json").exists():
        ARCHITECTURES[architecture](folder)


def _save_stable_diffusion_21(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    with _weights():
        text_encoder = _text_encoder(1024, 23, "gelu")
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        vae = _vae(512)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(),
        unet=unet,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(folder)


def _save_stable_diffusion_xl(folder: Path) -> None:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    with _weights():
        text_encoder = _text_encoder(768, 12, "quick_gelu")
        second = _text_encoder(1280, 32, "gelu", projected=True)
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        # The one that computes in float16 without overflow, as people serve it.
        vae = _vae(1024, scaling_factor=0.13025, force_upcast=False)
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=second,
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet,
        scheduler=_scheduler(),
        add_watermarker=False,
    ).to(dtype=torch.float16).save_pretrained(folder)


ARCHITECTURES: dict[str, Callable[[Path], object]] = {
    "sd21": _save_stable_diffusion_21,
    "sdxl": _save_stable_diffusion_xl,
    "tiny": testing.save_stable_diffusion,
    "tiny-xl": testing.save_stable_diffusion_xl,
}
"""Stable Diffusion 2.1-base; Stable Diffusion XL 1.0 base; and tiny ones, which run in seconds on a CPU too."""


@contextlib.contextmanager
def _weights() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield


_WORDS = [chr(code) for code in range(33, 127)]
_TOKENS = [*_WORDS, *(f"{letter}</w>" for letter in _WORDS), "<|startoftext|>", "<|endoftext|>"]


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab={token: number for number, token in enumerate(_TOKENS)}, merges=[], model_max_length=77)


def _text_encoder(width: int, layers: int, activation: str, *, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=len(_TOKENS) - 2,
        eos_token_id=len(_TOKENS) - 1,
        pad_token_id=len(_TOKENS) - 1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _vae(side: int, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=side,
        **more,
    )


def _scheduler() -> Any:
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


def settings(folder: Path, *, compiled: bool, limit: int, cache: Path) -> Settings:
    """Return the settings of a worker that serves the model.

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
        cache_dir=cache,
        compile_cache_path=cache / "compiled",
        spec={"source": {"path": str(folder)}, "compile": compiled, "workers": {"maxBatchSize": limit}},
    )


def tasks(count: int, steps: Sequence[int] = (STEPS,), **shape: Any) -> tuple[ImageRequest, ...]:
    """Return images, each with a prompt of its own; the numbers of steps take turns."""
    return tuple(
        ImageRequest(
            ImageId("job", 1, index),
            f"a picture of number {index}",
            None,
            index,
            SamplingParameters(**{"steps": steps[index % len(steps)], "guidance": 7.5, "scheduler": SCHEDULER} | shape),
        )
        for index in range(count)
    )


class Watch(ClosedBatchMonitor):
    """A monitor with images in stock: whoever has room gets more."""

    def __init__(self, stock: Sequence[ImageRequest] = ()) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.loads: list[StepStats] = []
        self._stock = list(stock)

    def ended(self, image_id: ImageId, outcome: Outcome) -> None:
        """Remember how an image ends."""
        self.outcomes[image_id.index] = outcome

    def joining_images(self, room: int, _calls: int, entry_limit: EntryLimit) -> tuple[ImageRequest, ...]:
        """Return as many images of the stock as there is room for."""
        room = entry_limit(min(room, len(self._stock)))
        given, self._stock = self._stock[:room], self._stock[room:]
        return tuple(given)

    def count_step(self, load: StepStats) -> None:
        """Remember what a step was like."""
        self.loads.append(load)


def make(engine: Engine, images: Sequence[ImageRequest], at_once: int) -> Watch:
    """Make images, so many at once.

    Raises:
        RuntimeError: One of them did not end well.
    """
    watch = Watch(images[at_once:])
    engine.run(tuple(images[:at_once]), watch)
    broken = [outcome for outcome in watch.outcomes.values() if not isinstance(outcome, ImageOutput)]
    if broken or len(watch.outcomes) != len(images):
        raise RuntimeError(f"{len(watch.outcomes)} of {len(images)} images ended, {broken[:1]}")
    return watch


def prepare_while_idle(engine: Any, seconds: float = 600.0) -> bool:
    """Let an engine prepare all that it wants, and return whether it came to the end in that time."""
    ends, woken = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < ends:
        busy = engine.compiler is not None and engine.compiler.busy
        if engine.prepare_while_idle(woken.set):
            continue
        if not busy:
            return True
        woken.wait(max(ends - time.monotonic(), 0))
        woken.clear()
    return False
