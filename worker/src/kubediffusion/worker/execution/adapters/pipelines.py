"""Which pipelines take adapters, and pipelines whose every call is made with the same ones."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any, cast

import torch

from kubediffusion.worker.engine.adapters import ImageAdapter
from kubediffusion.worker.execution.adapters.conversion import adaptable_components
from kubediffusion.worker.execution.adapters.modules import Added, SameAdded, adapted
from kubediffusion.worker.execution.adapters.weights import Layers, LoadedAdapter, joined
from kubediffusion.worker.execution.twins import has_twin
from kubediffusion.worker.families.text import LruCache
from kubediffusion.worker.loading.files import DENOISERS

_DEVICE_BYTES = 2**30
"""Bytes of joined adapters that are kept on the device beside the slots: of those that were used last."""


def takes_adapters(pipeline: Any) -> bool:
    """Return whether a pipeline's images can be made with adapters: whether diffusers has a loader for its denoiser.

    A denoiser whose blocks come from main memory takes none.
    """
    found = [getattr(pipeline, name) for name in denoisers(pipeline)]
    return bool(found) and all(map(has_twin, found))


def denoisers(pipeline: Any) -> tuple[str, ...]:
    """Name the denoisers among the components that adapters change."""
    return tuple(name for name in adaptable_components(pipeline) if name in DENOISERS)


class JoinedAdapters:
    """What the adapters of an image add to each component of a pipeline, on its device.

    Args:
        pipeline: The pipeline, on its device.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._known: LruCache[Hashable, Mapping[str, Layers]] = LruCache(_DEVICE_BYTES, _nbytes)

    def of(self, adapters: tuple[ImageAdapter, ...]) -> Mapping[str, Layers]:
        """Return what adapters add together, by component and layer; made at its first use."""
        return self._known.get(tuple(adapter.identity for adapter in adapters), lambda: self._join(adapters))

    def _join(self, adapters: tuple[ImageAdapter, ...]) -> dict[str, Layers]:
        loaded = [(cast(LoadedAdapter, adapter.weights).components, adapter.scale) for adapter in adapters]
        names = {name for components, _ in loaded for name in components}
        return {
            name: joined(
                [(components[name], scale) for components, scale in loaded if name in components],
                self._pipeline.device,
                getattr(self._pipeline, name).dtype,
            )
            for name in sorted(names)
        }


def adapted_pipeline(pipeline: Any, added: Mapping[str, Layers]) -> Any:
    """Return a pipeline of the same weights whose components have the layers of some adapters.

    Args:
        pipeline: The pipeline, which stays as it is.
        added: What is added, by component and layer.

    Raises:
        HookedModuleError: A component's weights come from main memory: :func:`.read_adapter` refuses its adapters.
    """
    twin = copy.copy(pipeline)
    for component, layers in added.items():
        twin.__dict__[component] = _with_same(getattr(pipeline, component), layers)
    return twin


def _with_same(model: Any, layers: Layers) -> Any:
    def make(name: str, layer: torch.nn.Module) -> Added:
        return SameAdded(layers[name], layer)

    return adapted(model, layers, make)


def _nbytes(added: Mapping[str, Layers]) -> int:
    return sum(factors.nbytes for layers in added.values() for factors in layers.values())
