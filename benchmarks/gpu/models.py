"""Measures the worker's engine alone on this machine's GPU: no cluster, no storage, no PNG.

    python benchmarks/gpu/engine.py --folder /tmp/model --compile > engine.json

Makes Stable Diffusion 2.1-base's architecture with random weights where the folder holds no model yet; speed does not
depend on what the weights know. `--tiny` takes a model that also a CPU runs in seconds, to try the script itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from kubediffusion.worker import testing
from kubediffusion.worker.engine import Engine, ImageTask, Load, Outcome, Picture, Shape, Ticket
from kubediffusion.worker.pipeline.continuous import ContinuousEngine
from kubediffusion.worker.pipeline.loading import load_engine
from kubediffusion.worker.settings import Settings

STEPS = 25
SCHEDULER = "DPMSolverMultistepScheduler"
COMPILED_WITHIN = 600.0
"""Seconds to wait for a batch size to be compiled."""


class Watch:
    """A monitor with images in stock: whoever has room gets more, and every end is timed."""

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


def save_model(folder: Path) -> None:
    """Save Stable Diffusion 2.1-base's architecture with random weights."""
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


def tasks(count: int, steps: Sequence[int] = (STEPS,), **shape: Any) -> tuple[ImageTask, ...]:
    """Give images; their steps take turns."""
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


def timed(engine: Engine, images: Sequence[ImageTask], at_once: int) -> tuple[float, Watch]:
    """Run images, so many at once, and give the seconds."""
    watch = Watch(images[at_once:])
    began = time.perf_counter()
    engine.run(tuple(images[:at_once]), watch)
    seconds = time.perf_counter() - began
    broken = [outcome for outcome in watch.outcomes.values() if not isinstance(outcome, Picture)]
    if broken or len(watch.outcomes) != len(images):
        raise SystemExit(f"{len(watch.outcomes)} of {len(images)} images ended, {broken[:1]}")
    return seconds, watch


def warm(engine: Engine, size: int, *, compiled: bool) -> float:
    """Run a batch size until it is as fast as it gets, and give the seconds that took."""
    began = time.perf_counter()
    while True:
        _, watch = timed(engine, tasks(size), size)
        done = all(load.compiled for load in watch.loads) or not compiled
        if done or time.perf_counter() - began > COMPILED_WITHIN:
            return time.perf_counter() - began


def sizes_of(limit: int) -> Iterator[int]:
    """Give the batch sizes to measure."""
    return (size for size in (1, 2, 4, 8, 16) if size <= limit)


def measure(engine: ContinuousEngine, limit: int, *, compiled: bool) -> dict[str, Any]:
    """Give everything that there is to know."""
    found: dict[str, Any] = {"engine": engine.info.name, "device": engine.info.device, "sizes": {}}
    for size in sizes_of(limit):
        ready = warm(engine, size, compiled=compiled)
        seconds, watch = timed(engine, tasks(4 * size), size)
        static, _ = timed(engine._static, tasks(size), size)  # noqa: SLF001 - what it is measured against
        found["sizes"][size] = {
            "seconds_to_ready": round(ready, 2),
            "images_per_second": round(4 * size / seconds, 3),
            "static_images_per_second": round(size / static, 3),
            "compiled": all(load.compiled for load in watch.loads),
        }
        sys.stderr.write(f"{size}: {found['sizes'][size]}\n")
    seconds, watch = timed(engine, tasks(1), 1)
    found["one_alone_seconds"] = round(seconds, 4)
    uniform, _ = timed(engine, tasks(6 * limit), limit)
    mixed_tasks = tasks(6 * limit, (10, 25, 50))
    mixed, watch = timed(engine, mixed_tasks, limit)
    per_second = sum(task.shape.steps for task in mixed_tasks) / mixed
    found["mixed_against_uniform"] = round(per_second / (6 * limit * STEPS / uniform), 3)
    found["mixed_occupancy"] = round(sum(x.images for x in watch.loads) / sum(x.size for x in watch.loads), 3)
    found["against_diffusers_levels"] = levels(engine, limit)
    found["deterministic"] = deterministic(engine, limit)
    if torch.cuda.is_available():
        found["peak_memory_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return found


def levels(engine: ContinuousEngine, limit: int) -> int:
    """Give the largest difference from the pipeline's own call, in levels of 255, of a full batch."""
    images = tasks(limit)
    _, slots = timed(engine, images, limit)
    _, calls = timed(engine._static, images[:1], 1)  # noqa: SLF001 - what it is measured against
    left, right = (np.frombuffer(watch.outcomes[0].rgb, np.uint8).astype(int) for watch in (slots, calls))
    return int(np.abs(left - right).max())


def deterministic(engine: ContinuousEngine, limit: int) -> bool:
    """Tell whether a deterministic image has the same bytes before and after others ran."""
    image = tasks(1, deterministic=True)
    first = timed(engine, image, 1)[1].outcomes[0]
    timed(engine, tasks(limit), limit)
    return bool(timed(engine, image, 1)[1].outcomes[0] == first)


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the model is, or is to be")
    parser.add_argument("--limit", type=int, default=16, help="the most images in a batch")
    parser.add_argument("--compile", action="store_true", help="compile in the background, and wait for it")
    parser.add_argument("--tiny", action="store_true", help="a model for trying this script")
    given = parser.parse_args()
    if not (given.folder / "model_index.json").exists():
        (testing.save_stable_diffusion if given.tiny else save_model)(given.folder)
    began = time.perf_counter()
    settings = Settings(
        pod_name="benchmark",
        pod_namespace="benchmark",
        model_name="benchmark",
        bucket="none",
        cache_dir=given.folder / "cache",
        spec={
            "source": {"path": str(given.folder)},
            "compile": given.compile,
            "workers": {"maxBatchSize": given.limit},
        },
    )
    engine = load_engine(settings)
    if not isinstance(engine, ContinuousEngine):
        raise SystemExit(f"the engine is {engine.info.name}")
    loaded = time.perf_counter() - began
    found = measure(engine, given.limit, compiled=given.compile and torch.cuda.is_available())
    sys.stdout.write(json.dumps({"load_seconds": round(loaded, 2), **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
