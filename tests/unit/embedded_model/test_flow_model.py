"""The flow-matching folder draws what it is asked for through diffusers' own call, and says what it is.

Fewer steps and text tokens than people use keep this to seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).parents[3] / "models" / "kubediffusion-emoji-flow"
# diffusers hands torch tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def pipe() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: str, **options: Any) -> Any:
    usual = {"width": 256, "height": 256, "num_inference_steps": 8, "max_sequence_length": 40}
    return pipe(prompt, **(usual | options), generator=torch.Generator("cpu").manual_seed(0)).images[0]


def test_the_folder_is_small_and_safe() -> None:
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 40_000_000
    assert max(p.stat().st_size for p in files) < 16_000_000
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md"}


def test_it_is_a_flux_pipeline_with_embedded_guidance(pipe: Any) -> None:
    assert type(pipe).__name__ == "FluxPipeline"
    assert pipe.transformer.config.guidance_embeds
    assert pipe.vae.config.latent_channels == 16
    assert pipe.scheduler.config.use_dynamic_shifting


@pytest.mark.parametrize(
    ("prompt", "subjects", "background"),
    [
        ("A photo of an astronaut riding a horse on the moon", {"astronaut", "horse"}, "moon"),
        ("a red car in the city at night", {"car"}, "city"),
    ],
)
def test_the_judge_sees_what_the_prompt_names(
    pipe: Any, judge: Any, prompt: str, subjects: set[str], background: str
) -> None:
    verdict = judge.look(draw(pipe, prompt))
    assert verdict.background == background
    assert {name for name in subjects if verdict.sees(name)} == subjects


def test_a_prompt_of_full_length_is_drawn_alike(pipe: Any, judge: Any) -> None:
    verdict = judge.look(draw(pipe, "a castle in the mountains", num_inference_steps=4, max_sequence_length=512))
    assert verdict.background == "mountains"
    assert verdict.sees("castle")


def test_it_draws_wider_than_high(pipe: Any, judge: Any) -> None:
    image = draw(pipe, "a castle in the mountains", num_inference_steps=4, width=320, height=192)
    assert image.size == (320, 192)
    assert judge.look(image).sees("castle")


def test_guidance_is_embedded_and_changes_the_picture(pipe: Any) -> None:
    one, other = (
        np.asarray(draw(pipe, "a castle in the mountains", num_inference_steps=2, guidance_scale=g), np.float32)
        for g in (1.0, 5.0)
    )
    assert np.abs(one - other).mean() > 1


def test_a_mask_is_painted_anew_and_the_rest_stays(pipe: Any, judge: Any) -> None:
    from diffusers import FluxInpaintPipeline

    before = draw(pipe, "a castle in the mountains", num_inference_steps=4)
    mask = np.zeros((256, 256), np.uint8)
    mask[48:240, 48:208] = 255
    kind: Any = FluxInpaintPipeline
    paint = kind(**pipe.components)
    paint.set_progress_bar_config(disable=True)
    after = paint(
        "a photo of a penguin in the mountains",
        image=before,
        mask_image=Image.fromarray(mask),
        width=256,
        height=256,
        strength=1.0,
        num_inference_steps=6,
        guidance_scale=3.5,
        max_sequence_length=40,
        generator=torch.Generator("cpu").manual_seed(0),
    ).images[0]
    verdict = judge.look(after)
    assert verdict.sees("penguin")
    assert not verdict.sees("castle")
    apart = np.abs(np.asarray(after, np.float32) - np.asarray(before, np.float32))
    assert apart[mask == 0].mean() < 4
    assert apart[mask > 0].mean() > 10
