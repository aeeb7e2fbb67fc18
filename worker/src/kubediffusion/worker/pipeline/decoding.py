"""From the latents of one image to its pixels, beside the batch's steps: on a CUDA device in a stream of its own.

One image at a time: a batch of them gains nothing, and the first one need not wait for the last.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kubediffusion.worker.pipeline.accelerator import capture
from kubediffusion.worker.pipeline.families import Family

_GRAPHS = 4
"""Image sizes whose graph is kept; each holds the VAE's working set for its size."""


@dataclass(frozen=True)
class Decoding:
    """An image that is being decoded.

    Attributes:
        latents: ``[1, channels, height, width]``, float32, on the device.
        image: ``[1, 3, height, width]``, about -1 to 1, on the device.
        pixels: ``[height, width, 3]``, uint8, in the host's memory.
        finite: Whether all of it are numbers, in the host's memory.
        done: Event after which the host's memory holds them; None where it does.
    """

    latents: torch.Tensor
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
    """

    def __init__(self, pipeline: Any, family: Family) -> None:
        self._pipeline = pipeline
        self._family = family
        self._device: torch.device = pipeline.device
        vae = pipeline.vae
        upcasts = family.upcasts and vae.dtype == torch.float16 and vae.config.force_upcast
        self._vae = _in_float32(vae) if upcasts else vae
        self._wide: Any = None
        self._stream = torch.cuda.Stream() if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # Least recently used first.
        self._graphs: OrderedDict[tuple[int, ...], _Graphed] = OrderedDict()

    def begin(self, latents: torch.Tensor, *, plain: bool = False) -> Decoding:
        """Begin to decode an image, without waiting for it.

        Args:
            latents: As the denoiser left them: ``[1, channels, height, width]``, float32.
            plain: Compute as written, not by a graph.
        """
        if self._stream is None:
            return self._decode(latents, plain=True)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            latents.record_stream(self._stream)
            decoding = self._decode(latents, plain=plain)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return Decoding(decoding.latents, decoding.image, decoding.pixels, decoding.finite, done)

    def forget(self) -> bool:
        """Free the memory that graphs hold, and tell whether there were any."""
        held = bool(self._graphs)
        self._graphs.clear()
        if held:
            torch.cuda.empty_cache()
        return held

    def finish(self, decoding: Decoding) -> tuple[NDArray[np.uint8] | None, bool]:
        """Wait for an image, and give its pixels, ``[height, width, 3]``, and whether the safety checker flagged it.

        The pixels are None when they are not numbers, in float32 neither.
        """
        if decoding.done is not None:
            decoding.done.synchronize()
        if not bool(decoding.finite) and self._vae.dtype == torch.float16:
            # float16 ends at 65504, and some models' VAE goes beyond.
            if self._wide is None:
                self._wide = _in_float32(self._vae)
            decoding = self._pixels(decoding.latents, self._image(self._wide, decoding.latents))
            self._wait()
        if not bool(decoding.finite):
            return None, False
        flagged = self._flagged(decoding.image)
        pixels = np.zeros_like(decoding.pixels.numpy()) if flagged else decoding.pixels.numpy()
        return pixels, flagged

    def _decode(self, latents: torch.Tensor, *, plain: bool) -> Decoding:
        if plain:
            return self._pixels(latents, self._image(self._vae, latents))
        shape = tuple(latents.shape)
        if shape not in self._graphs:
            while len(self._graphs) >= _GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[shape] = _Graphed(lambda given: self._image(self._vae, given), latents)
        self._graphs.move_to_end(shape)
        return self._pixels(latents, self._graphs[shape](latents))

    def _image(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = vae.decode(self._family.unscaled(latents).to(vae.dtype), return_dict=False)[0]
        return image

    def _pixels(self, latents: torch.Tensor, image: torch.Tensor) -> Decoding:
        shown = self._pipeline.image_processor.postprocess(image, output_type="pt").float()
        finite = torch.isfinite(image).all()
        pixels = (shown[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
        return Decoding(latents, image, _to_host(pixels), _to_host(finite))

    def _flagged(self, image: torch.Tensor) -> bool:
        if getattr(self._pipeline, "safety_checker", None) is None:
            return False
        # It blanks what it is given.
        _, flags = self._pipeline.run_safety_checker(image.clone(), self._device, self._pipeline.unet.dtype)
        return bool(flags[0])

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()


class _Graphed:
    """A function of one tensor as a CUDA graph.

    Args:
        function: The function.
        example: An argument of it.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor) -> None:
        self._given = example.clone()
        self._result = torch.empty_like(function(self._given))
        self._graph = capture(lambda: function(self._given), self._result.copy_, torch.cuda.graph_pool_handle())

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        self._given.copy_(given)
        self._graph.replay()
        # The next one overwrites it.
        return self._result.clone()


def _in_float32(vae: Any) -> Any:
    # A copy: the pipeline's call expects its own as it is.
    return copy.deepcopy(vae).to(torch.float32)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_cuda:
        return tensor
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
