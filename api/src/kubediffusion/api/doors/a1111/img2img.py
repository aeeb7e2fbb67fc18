"""``img2img`` of AUTOMATIC1111's web UI: its fields beside those of ``txt2img``, and the images in them. Pure."""

from __future__ import annotations

from binascii import a2b_base64
from typing import Annotated, Any

from PIL import Image, ImageOps
from pydantic import Field
from pydantic_core import from_json

from kubediffusion.api.doors.a1111.translate import Txt2ImgRequest
from kubediffusion.api.doors.common import validated
from kubediffusion.api.errors import InvalidRequestError, Problem, problem

EXAMPLE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGP8z8DAwMDAxMDAwMDAAAANHQEDasKb6QAAAABJRU5ErkJggg=="
)
"""A picture of four red pixels."""

_SLICE = 1024 * 1024
"""Characters of base64 that are decoded at a time: other requests have their turn in between."""


class Img2ImgRequest(Txt2ImgRequest):
    """What to make of an image, as the web UI's clients say it."""

    init_images: Annotated[list[str], Field(min_length=1, examples=[[EXAMPLE_PNG]])]
    """The image to begin from: a PNG, JPEG or WebP in base64, or as a data URL. The first one is taken."""
    denoising_strength: Annotated[float, Field(ge=0, le=1)] | None = None
    """How much of the image is made anew; 0.75 when absent."""
    mask: str | None = None
    """White where the image is painted anew, black where its pixels stay; of one with transparency, its opacity."""
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] | None = None
    """1: black where the image is painted anew."""
    resize_mode: Annotated[int, Field(ge=0, le=3)] | None = None
    """0 alone: the image is resized to width and height, without regard to its shape."""
    initial_noise_multiplier: float | None = None
    """1 alone."""
    mask_blur: Annotated[int, Field(ge=0)] | None = None
    """No effect: the edge of a mask is sharp."""
    inpainting_fill: Annotated[int, Field(ge=0, le=3)] | None = None
    """No effect: what is painted anew begins from the image, as 1 has it there."""
    inpaint_full_res: bool | None = None
    """No effect: the whole picture is made at its size."""

    @property
    def strength(self) -> float:
        """How much of the image is made anew."""
        return 0.75 if self.denoising_strength is None else self.denoising_strength

    @property
    def warnings(self) -> list[str]:
        """A sentence for each field that has no effect, as it would change the picture in the web UI."""
        found = super().warnings
        if len(self.init_images) > 1:
            found.append("of init_images the first alone is taken")
        if self.mask:
            if self.mask_blur:
                found.append("mask_blur has no effect here: the edge of a mask is sharp")
            if self.inpainting_fill not in {None, 1}:
                found.append(
                    "inpainting_fill has no effect here: what is painted anew begins from the image, as with 1"
                )
            if self.inpaint_full_res:
                found.append("inpaint_full_res has no effect here: the whole picture is made at its size")
        return found

    @property
    def refused(self) -> list[Problem]:
        """What this server cannot do beside what it cannot do of ``txt2img``."""
        found = super().refused
        if self.resize_mode:
            found.append(problem("resize_mode", "It must be 0; crop or fill the image before it is sent"))
        if self.initial_noise_multiplier not in {None, 1}:
            found.append(problem("initial_noise_multiplier", "It must be 1; leave it out"))
        return found

    def understood(self) -> dict[str, Any]:
        """Return the request without what has no effect, and without the images, as JSON has it."""
        return super().understood() | {"init_images": None, "mask": None, "denoising_strength": self.strength}


def parse_request(body: bytes) -> Img2ImgRequest:
    """Read a request, in whose body images are.

    Raises:
        InvalidRequestError: It is not valid.
    """
    try:
        found = from_json(body)
    except ValueError as error:
        raise InvalidRequestError([problem(None, f"The body is not valid JSON: {error}", "json_invalid")]) from None
    return validated(Img2ImgRequest, found)


def image_bytes(text: str, field: str) -> bytes:
    """Decode an image of a request.

    Args:
        text: Base64, or a data URL of it.
        field: The field that it is in, for errors.

    Raises:
        InvalidRequestError: It is neither.
    """
    if text[:8].lower().startswith(("http://", "https://")):
        message = "No address is taken here; send the image itself, in base64"
        raise InvalidRequestError([problem(field, message, "image_refused")])
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    # Some encoders break lines.
    text = "".join(text.split())
    try:
        return b"".join(a2b_base64(text[at : at + _SLICE], strict_mode=True) for at in range(0, len(text), _SLICE))
    except ValueError:
        message = "The image is not taken: it is no base64, and no data URL of it"
        raise InvalidRequestError([problem(field, message, "image_refused")]) from None


def painted_anew(mask: Image.Image) -> Image.Image:
    """Return a mask as the web UI reads it: its opacity where it has transparency, else its greys."""
    return mask.getchannel("A") if mask.mode == "RGBA" else mask.convert("L")


def kept(mask: Image.Image) -> Image.Image:
    """Return the opposite of :func:`painted_anew`."""
    return ImageOps.invert(painted_anew(mask))
