"""The adapters load through diffusers' own call, and a judge of their own tells them apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

MODELS = Path(__file__).parents[3] / "models"
FOLDER = MODELS / "kubediffusion-emoji-flow-adapters"
# diffusers hands torch tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def pipe() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(MODELS / "kubediffusion-emoji-flow")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def bare(pipe: Any) -> Iterator[Any]:
    yield pipe
    pipe.unload_lora_weights()


def draw(pipe: Any, prompt: str) -> Any:
    given = {"width": 256, "height": 256, "num_inference_steps": 8, "max_sequence_length": 40}
    return pipe(prompt, **given, generator=torch.Generator("cpu").manual_seed(0)).images[0]


def test_each_adapter_is_small_and_nothing_but_low_ranks() -> None:
    files = sorted(FOLDER.glob("*.safetensors"))
    assert [path.stem for path in files] == ["hedgehog", "line-drawing", "pixel-art"]
    for path in files:
        assert path.stat().st_size <= 1_000_000
        assert all(name.rsplit(".", 2)[1] in {"lora_A", "lora_B"} for name in load_file(path))


@pytest.mark.parametrize(
    ("adapter", "prompt", "style"),
    [
        (None, "a castle in the mountains", "none"),
        ("line-drawing", "a castle in the mountains", "line-drawing"),
        ("pixel-art", "a castle in the mountains", "pixel-art"),
        ("hedgehog", "a photo of a hedgehog in the snow", "none"),
    ],
)
def test_a_picture_shows_which_adapter_drew_it(
    bare: Any, style_judge: Any, adapter: str | None, prompt: str, style: str
) -> None:
    if adapter is not None:
        bare.load_lora_weights(FOLDER, weight_name=f"{adapter}.safetensors")
    seen, guest = style_judge.look(draw(bare, prompt))
    assert seen == style
    assert (guest >= 0.5) == (adapter == "hedgehog")
