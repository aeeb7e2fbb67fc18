"""From pixels to the PNG that is stored, with its recipe inside.

The recipe rides in text chunks, so an image that left the cluster still says how to make it again. The bytes are a
function of pixels and recipe alone: no time, no attempt, so that every attempt of a deterministic job gives the same
file.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from kubediffusion.worker.engine import Picture

RECIPE_CHUNK = "kubediffusion"
"""Keyword of the text chunk that holds the recipe as JSON."""

PROMPT_CHUNK = "Description"
"""The PNG specification's keyword for what an image shows: https://www.w3.org/TR/png/#11keywords"""

SOFTWARE_CHUNK = "Software"

COMPRESS_LEVEL = 1
"""zlib level. A 512x512 photo takes 21 to 36 ms of a core at level 1 and 39 to 127 at 6, for a few percent of size."""


@dataclass(frozen=True)
class Png:
    """A file that is ready to be stored.

    Attributes:
        data: The file.
        sha256: Its hash, in hexadecimal.
    """

    data: bytes = field(repr=False)
    sha256: str


def encode(picture: Picture, prompt: str, recipe: Mapping[str, Any]) -> Png:
    """Encode a picture with its recipe.

    Args:
        picture: The pixels.
        prompt: What the image shows.
        recipe: JSON-like values that make the image again.
    """
    info = PngInfo()
    # iTXt holds UTF-8; prompts come in every script.
    info.add_itxt(PROMPT_CHUNK, prompt)
    info.add_itxt(SOFTWARE_CHUNK, "KubeDiffusion")
    info.add_itxt(RECIPE_CHUNK, json.dumps(recipe, sort_keys=True, ensure_ascii=False))
    image = Pillow.frombuffer("RGB", (picture.width, picture.height), picture.rgb, "raw", "RGB", 0, 1)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=COMPRESS_LEVEL, pnginfo=info)
    data = buffer.getvalue()
    return Png(data, hashlib.sha256(data).hexdigest())


def read_recipe(data: bytes) -> tuple[str, dict[str, Any]]:
    """Give the prompt and the recipe of a PNG that :func:`encode` made.

    Raises:
        ValueError: The file carries no recipe.
    """
    with Pillow.open(io.BytesIO(data)) as image:
        image.load()
        text = dict(getattr(image, "text", {}))
    if RECIPE_CHUNK not in text:
        raise ValueError("the PNG carries no KubeDiffusion recipe")
    return str(text.get(PROMPT_CHUNK, "")), json.loads(text[RECIPE_CHUNK])
