"""The step engine and diffusers' own call draw one picture from the flow-matching folder, and the judge knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kubediffusion.worker.engine import ImageOutput
from kubediffusion.worker.execution.continuous import NAME
from unit.worker.continuous_engines import load, pictures
from unit.worker.worker_builders import image_request, levels_apart

FOLDER = Path(__file__).parents[3] / "models" / "kubediffusion-emoji-flow"
# diffusers asks NumPy 2 for arrays the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def picture(made: ImageOutput) -> Image.Image:
    return Image.frombytes("RGB", (made.width, made.height), made.rgb)


def test_the_engine_and_diffusers_draw_what_the_judge_knows(judge: Any) -> None:
    engine = load(FOLDER, images=2)
    request = image_request(3, "a castle in the mountains", steps=4, guidance=3.5, width=256, height=256)
    made, whole = (pictures(one, request)[3] for one in (engine, engine.whole_calls))
    assert made.engine == NAME
    assert levels_apart(made, whole) <= 1
    for image in (made, whole):
        verdict = judge.look(picture(image))
        assert verdict.background == "mountains"
        assert verdict.sees("castle")
