"""What an image with adapters needs before its first step: its prompts' encoding, and its factors on the device."""

from __future__ import annotations

from typing import Any, cast

from kubediffusion.worker.engine import ImageRequest
from kubediffusion.worker.engine.adapters import ImageAdapter
from kubediffusion.worker.execution.adapters.pipelines import JoinedAdapters, adapted_pipeline
from kubediffusion.worker.execution.adapters.weights import Layers, LoadedAdapter
from kubediffusion.worker.families.base import Conditioning, ModelFamily


class AdapterPreparation:
    """Prepares images with adapters for the slots of a family's batches. Belongs to the engine's thread.

    Args:
        pipeline: The pipeline, on its device.
        family: Its family.
        joined: What adapters add to the pipeline's components.
    """

    def __init__(self, pipeline: Any, family: ModelFamily, joined: JoinedAdapters) -> None:
        self._pipeline = pipeline
        self._family = family
        self._joined = joined

    def added(self, adapters: tuple[ImageAdapter, ...]) -> Layers:
        """Return what adapters add to the denoiser's layers, on the device."""
        return self._joined.of(adapters).get(self._family.component, {}) if adapters else {}

    def of_text(self, adapters: tuple[ImageAdapter, ...]) -> tuple[ImageAdapter, ...]:
        """Return those adapters that change how prompts are encoded."""
        own = {self._family.component}
        return tuple(adapter for adapter in adapters if cast(LoadedAdapter, adapter.weights).components.keys() - own)

    def encode(self, request: ImageRequest, key: Any) -> Conditioning:
        """Encode an image's prompts with the layers that its adapters add to the text encoders.

        Each call makes twins of the encoders, in some milliseconds, which run as they are written: encodings are kept,
        and other images' encoders are not touched.
        """
        adapters = self.of_text(request.adapters)
        if not adapters:
            return self._family.encode(request, key)
        added = {name: layers for name, layers in self._joined.of(adapters).items() if name != self._family.component}
        return type(self._family)(adapted_pipeline(self._pipeline, added)).encode(request, key)
