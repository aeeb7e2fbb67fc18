"""From the latents of one image to its pixels, beside the batch's steps: on a CUDA device in a stream of its own.

One image at a time: a batch of them gains nothing, and the first one need not wait for the last.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kubediffusion.worker.engine import BatchKey
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.graphs import URGENT, GraphedFunction
from kubediffusion.worker.families.base import ModelFamily
from kubediffusion.worker.transfers import to_host

_WITH_FRAMES = 5
"""Dimensions of a VAE's output that has frames: image, channel, frame, height, width."""


@dataclass(frozen=True)
class Decoding:
    """An image that is being decoded.

    Attributes:
        latents: ``[1, ...]``, float32, on the device.
        key: The image's own: its size.
        image: ``[1, 3, height, width]``, about -1 to 1, on the device.
        pixels: ``[height, width, 3]``, uint8, in the host's memory.
        finite: Whether all of it are numbers, in the host's memory.
        done: Event after which the host's memory holds them; None where it does.
    """

    latents: torch.Tensor
    key: BatchKey
    image: torch.Tensor
    pixels: torch.Tensor
    finite: torch.Tensor
    done: Any = None

    @property
    def ready(self) -> bool:
        """Whether the pixels are there; does not wait."""
        return self.done is None or self.done.query()


class Decoder:
    """Decodes images of one pipeline.

    Args:
        pipeline: The pipeline, on its device.
        family: Its family.
        compiler: Compiles in the background; None for no compilation.
    """

    def __init__(self, pipeline: Any, family: ModelFamily, compiler: Compiler | None = None) -> None:
        self._pipeline = pipeline
        self._family = family
        self._device: torch.device = pipeline.device
        vae = pipeline.vae
        upcasts = family.upcasts and vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
        self._vae = _in_float32(vae) if upcasts else vae
        self._wide: Any = None
        self._graphed = GraphedFunction(decoded, self._vae, compiler=compiler)
        cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(priority=URGENT) if cuda else None  # type: ignore[no-untyped-call]

    @property
    def vae(self) -> Any:
        """The VAE, in the numbers that it computes in."""
        return self._vae

    def begin(self, latents: torch.Tensor, key: BatchKey, *, plain: bool = False) -> Decoding:
        """Begin to decode an image, without waiting for it.

        Args:
            latents: As the denoiser left them: ``[1, ...]``, float32.
            key: The image's own: its size.
            plain: Compute as written, not by a graph.
        """
        if self._stream is None:
            return self._decode(latents, key, plain=True)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            latents.record_stream(self._stream)
            decoding = self._decode(latents, key, plain=plain)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return Decoding(decoding.latents, key, decoding.image, decoding.pixels, decoding.finite, done)

    def prepare(self) -> bool:
        """Compile for sizes that were decoded: see :meth:`GraphedFunction.prepare`."""
        if self._stream is None:
            return self._graphed.prepare()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            return self._graphed.prepare()

    def evict(self) -> bool:
        """Free the memory that graphs hold, and return whether there were any."""
        return self._graphed.evict()

    def finish(self, decoding: Decoding) -> tuple[NDArray[np.uint8] | None, bool]:
        """Wait for an image, and return its pixels, ``[height, width, 3]``, and whether the safety checker flagged it.

        The pixels are None when they are not numbers, in float32 neither.
        """
        if decoding.done is not None:
            decoding.done.synchronize()
        if not bool(decoding.finite) and self._vae.dtype == torch.float16:
            # float16 ends at 65504, and some models' VAE goes beyond.
            if self._wide is None:
                self._wide = _in_float32(self._vae)
            latents, key = decoding.latents, decoding.key
            decoding = self._pixels(latents, key, decoded(self._wide, self._scaled(self._wide, latents, key)))
            self._wait()
        if not bool(decoding.finite):
            return None, False
        flagged = self._flagged(decoding.image)
        pixels = np.zeros_like(decoding.pixels.numpy()) if flagged else decoding.pixels.numpy()
        return pixels, flagged

    def _decode(self, latents: torch.Tensor, key: BatchKey, *, plain: bool) -> Decoding:
        scaled = self._scaled(self._vae, latents, key)
        return self._pixels(latents, key, decoded(self._vae, scaled) if plain else self._graphed(scaled))

    def _scaled(self, vae: Any, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:
        return self._family.vae_input(latents, key).to(vae.dtype)

    def _pixels(self, latents: torch.Tensor, key: BatchKey, image: torch.Tensor) -> Decoding:
        shown = self._pipeline.image_processor.postprocess(image, output_type="pt").float()
        finite = torch.isfinite(image).all()
        pixels = (shown[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
        return Decoding(latents, key, image, to_host(pixels), to_host(finite))

    def _flagged(self, image: torch.Tensor) -> bool:
        if getattr(self._pipeline, "safety_checker", None) is None:
            return False
        # It blanks what it is given.
        _, flags = self._pipeline.run_safety_checker(image.clone(), self._device, self._family.denoiser_dtype)
        return bool(flags[0])

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()


def decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents in the VAE's own scale and numbers: ``[1, 3, height, width]``, about -1 to 1."""
    image: torch.Tensor = vae.decode(latents, return_dict=False)[0]
    # A VAE that video models share gives a frame.
    return image[:, :, 0] if image.dim() == _WITH_FRAMES else image


def _in_float32(vae: Any) -> Any:
    # A copy: the pipeline's call expects its own as it is.
    return copy.deepcopy(vae).to(torch.float32)
