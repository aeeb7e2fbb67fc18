"""Makes previews of images beside the batch's steps: the device is not waited for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from kubediffusion.worker.engine import BatchKey, ImageId, ImagePreview, described
from kubediffusion.worker.execution.faults import check_device
from kubediffusion.worker.families.base import ModelFamily
from kubediffusion.worker.transfers import to_host

logger = logging.getLogger(__name__)

MOST_PIXELS = 256
"""Pixels of a preview's longer side at most: more would be no preview."""


@dataclass(frozen=True, eq=False)
class _Pending:
    image: ImageId
    pixels: torch.Tensor
    done: Any

    @property
    def ready(self) -> bool:
        return self.done is None or self.done.query()


class Previewer:
    """Makes previews of one pipeline's images.

    No failure of a preview is its image's: after one there are none any more.

    Args:
        pipeline: The pipeline, on its device.
        family: Its family.
    """

    def __init__(self, pipeline: Any, family: ModelFamily) -> None:
        self._family = family
        self._device: torch.device = pipeline.device
        # What a checker would blank must not be seen before it has looked.
        self._possible = getattr(pipeline, "safety_checker", None) is None
        self._pending: list[_Pending] = []

    @property
    def possible(self) -> bool:
        """Whether there are previews."""
        return self._possible

    def begin(self, image: ImageId, latents: Callable[[], torch.Tensor], key: BatchKey) -> None:
        """Begin a preview.

        Args:
            image: The image.
            latents: Returns what it is expected to end with: ``[1, ...]``, float32.
            key: The image's own: its size.

        Raises:
            EngineLostError: The device failed.
        """
        try:
            pixels = to_host(_small(self._family.preview(latents(), key)))
            done = None
            if self._device.type == "cuda":
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record()
        except Exception as error:  # noqa: BLE001 - the image needs none
            self._possible = False
            logger.warning("previews cannot be made", extra=described(error))
            check_device(self._device, error)
            return
        self._pending.append(_Pending(image, pixels, done))

    def finished(self) -> list[tuple[ImageId, ImagePreview]]:
        """Return the previews that are ready, each once; does not wait."""
        ready = [pending for pending in self._pending if pending.ready]
        self._pending = [pending for pending in self._pending if pending not in ready]
        return [(pending.image, _preview(pending.pixels)) for pending in ready]


def _small(colors: torch.Tensor) -> torch.Tensor:
    """Turn colours, ``[height, width, 3]``, 0 to 1, into pixels, uint8, of at most :data:`MOST_PIXELS` a side."""
    height, width = colors.shape[:2]
    if (longer := max(height, width)) > MOST_PIXELS:
        size = [max(side * MOST_PIXELS // longer, 1) for side in (height, width)]
        colors = F.interpolate(colors.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0)
    return (colors * 255).round().to(torch.uint8).contiguous()


def _preview(pixels: torch.Tensor) -> ImagePreview:
    height, width = pixels.shape[:2]
    return ImagePreview(width, height, pixels.numpy().tobytes())
