# ruff: noqa: E501 - tables of words, one line a thing
"""Writes the pipeline folder, float16 safetensors in files under 16 MB, and sample sheets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from .captions import SEED_PROMPT
from .diffusion import new_scheduler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from .evaluate import Painter
    from .settings import Settings

SHOWN = (
    "a photo of a cat in the snow", "a fox in the forest", "a penguin riding a bicycle on the beach", "two pandas in a meadow",
    "a castle in the mountains", "a wizard holding a crown at sunset", "a robot on mars", "a red car in the city at night",
    "a dragon above a castle in the mountains", "three butterflies in a meadow",
    "a princess riding a tiger in the forest", "a whale in space", "an octopus playing a guitar underwater", "a tiger in the snow",
    "a teddy bear next to a birthday cake in a room", "a ghost in the city at night", "an elephant under the northern lights",
    "a slice of pizza on a blue background", "a chef holding a pizza", "an owl in an autumn park",
    "a dinosaur in the desert", "a monkey riding a motorcycle in the rain", "a rocket in space", "a snowman next to a christmas tree in the snow",
    "a frog on a pink background", "a hot dog on a yellow background", "a ninja riding a horse at sunset", "a koala behind a tree",
    "a sailboat underwater", "a lion in the desert",
    "two ghosts on mars", "a detective with a balloon on a rainy day", "a flamingo on the beach", "a small mouse next to a large cheese",
    "a train in the snow", "a mermaid holding a star underwater", "a rainbow above a house in a meadow", "a camel in the desert",
    "a vampire riding a scooter in the city at night", "three strawberries on a white background",
)  # fmt: skip


def export(settings: Settings, vae: Any, text: Any, tokenizer: Any, unet: Any, folder: Path) -> None:
    """Write the folder that `DiffusionPipeline.from_pretrained` loads with nothing else."""
    kind: Any = StableDiffusionPipeline
    pipe = kind(
        vae=vae.to("cpu", torch.float16),
        text_encoder=text.to("cpu", torch.float16),
        tokenizer=tokenizer,
        unet=unet.to("cpu", torch.float16),
        scheduler=new_scheduler(settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True, max_shard_size="15MB")
    tidy(folder)


def tidy(folder: Path) -> None:
    """Make a written folder alike for everyone: readable, and silent about the machine that it was made on."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
        if path.suffix == ".json":  # where a part came from on the training machine is nobody's business
            table = json.loads(path.read_text(encoding="utf-8"))
            changed = table.pop("_name_or_path", None) is not None
            if path.parent.name.startswith("text_encoder") and "dtype" in table:
                # transformers loads in the type named here unless told otherwise; diffusers' parts come in float32.
                table["dtype"], changed = "float32", True
            if changed:
                path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def sheet(images: Tensor, columns: int, gap: int = 4) -> Image.Image:
    """Lay uint8 images [n, 3, h, w] out in rows."""
    number, _, height, width = images.shape
    rows = -(-number // columns)
    out = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        out[y : y + height, x : x + width] = image.permute(1, 2, 0).numpy()
    return Image.fromarray(out)


def sheets(paint: Painter, folder: Path, prompts: Sequence[str] = SHOWN) -> None:
    """Write the sample sheet of the card and the twenty astronauts; small, since they count towards the folder's 40 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    small(sheet(paint(list(prompts), range(len(prompts))), 8)).save(folder / "samples.png", optimize=True)
    small(sheet(paint([SEED_PROMPT] * 20, range(20), guidance=9.0), 10)).save(folder / "astronauts.png", optimize=True)


def small(picture: Image.Image) -> Image.Image:
    """Return a picture at half its size."""
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
