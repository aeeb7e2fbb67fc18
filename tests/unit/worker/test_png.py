"""PNGs carry their recipe, and their bytes depend on nothing else than pixels and recipe."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from kubediffusion.worker.engine import ImageOutput
from kubediffusion.worker.images import encode, read_recipe
from unit.worker.worker_builders import picture


def test_pixels_and_recipe_come_back() -> None:
    png = encode(picture((200, 100, 50)), "ein Kätzchen 🐈, 猫", {"seed": 2**63 - 1, "model": "m"})
    assert read_recipe(png.data) == ("ein Kätzchen 🐈, 猫", {"seed": 2**63 - 1, "model": "m"})
    assert png.sha256 == hashlib.sha256(png.data).hexdigest()
    with Image.open(io.BytesIO(png.data)) as image:
        assert (image.mode, image.size) == ("RGB", (8, 4))
        assert image.getpixel((7, 3)) == (200, 100, 50)


def test_the_same_picture_gives_the_same_bytes() -> None:
    first = encode(picture(), "a cat", {"a": 1, "b": 2})
    assert encode(picture(), "a cat", {"b": 2, "a": 1}) == first


def test_another_png_has_no_recipe() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, format="PNG")
    with pytest.raises(ValueError, match="no KubeDiffusion recipe"):
        read_recipe(buffer.getvalue())


@pytest.mark.parametrize("height", [1, 127, 128, 129, 300])
def test_every_height_comes_back_pixel_for_pixel(height: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, 33, 3), dtype=np.uint8)
    png = encode(ImageOutput(33, height, pixels.tobytes(), "x"), "noise", {})
    with Image.open(io.BytesIO(png.data)) as image:
        image.verify()
    with Image.open(io.BytesIO(png.data)) as image:
        assert np.array_equal(np.asarray(image), pixels)
