"""Layers that add what adapters bring, and twins of a model that have such layers in the place of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from kubediffusion.worker.execution.adapters.weights import LowRank
from kubediffusion.worker.execution.twins import twin_with
from kubediffusion.worker.families.row_layout import RowLayout

FUSED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v")}
"""Layers that ``fuse_qkv_projections`` of diffusers makes, and those whose outputs they give side by side."""


class Added(nn.Module):
    """What one layer's adapters add to its output: ``[rows, ...]`` as the layer's own. Subclasses say whose."""

    def forward(self, given: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return the layer's own output with what is added.

        Args:
            given: The layer's input.
            own: The layer's own output.
        """
        raise NotImplementedError


class SlotsAdded(Added):
    """What the adapters of a batch's images add to a linear layer: to each row what its image's slot holds.

    Two batched products: ``[rows, places, inputs] @ [rows, inputs, rank] @ [rows, rank, outputs]``. The factors' memory
    is the slots' own, so that a captured graph finds what was written into it since. With guidance they are copied once
    a step for the second row, as one product then suffices for both.

    Args:
        factors: Those of the images that are computed: ``[images, rank, inputs]`` and ``[images, outputs, rank]``.
        rows: Rows of each image: all images' first rows, then all images' second ones.
        layout: Where the layer's input has them.
    """

    def __init__(self, factors: LowRank, rows: int, layout: RowLayout = RowLayout.FIRST) -> None:
        super().__init__()
        # Parameters, as a layer's own weights: compiled code takes them as inputs, and is bound to no object of them.
        self.down = nn.Parameter(factors.down, requires_grad=False)
        self.up = nn.Parameter(factors.up, requires_grad=False)
        self.rows = rows
        self.layout = layout

    def by_row(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both factors of each row."""
        if self.rows == 1:
            return self.down, self.up
        return self.down.repeat(self.rows, *(1,) * (self.down.dim() - 1)), self.up.repeat(self.rows, 1, 1)

    def forward(self, given: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return the layer's own output with what is added: see :meth:`Added.forward`."""
        down, up = self.by_row()
        if self.layout is RowLayout.SECOND:
            return _sum(given.transpose(0, 1), own.transpose(0, 1), down, up).transpose(0, 1)
        if self.layout is RowLayout.FIRST and len(given) != len(down):
            raise RuntimeError(f"a layer has {len(given)} rows in a step of {len(down)}")
        return _sum(given, own, down, up)


def _sum(given: torch.Tensor, own: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return a linear layer's output with what factors by row add to it."""
    rows = len(down)
    low = torch.bmm(given.reshape(rows, -1, given.shape[-1]).to(down.dtype), down.transpose(1, 2))
    flat = own.reshape(rows, -1, own.shape[-1])
    return torch.baddbmm(flat, low.to(flat.dtype), up.transpose(1, 2).to(flat.dtype)).reshape(own.shape)


class SlotsAddedToConvolution(SlotsAdded):
    """What the adapters of a batch's images add to a convolution: see :class:`SlotsAdded`.

    Args:
        factors: ``[images, rank, inputs, height, width]`` and ``[images, outputs, rank]``.
        rows: Rows of each image.
        layer: The convolution, for stride, padding and dilation.
    """

    def __init__(self, factors: LowRank, rows: int, layer: nn.Conv2d) -> None:
        super().__init__(factors, rows)
        self.options = _options(layer)

    def forward(self, given: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return the layer's own output with what is added: see :meth:`Added.forward`."""
        down, up = self.by_row()
        rows = len(down)
        if len(given) != rows:
            raise RuntimeError(f"a layer has {len(given)} rows in a step of {rows}")
        # A group a row: each row has weights of its own.
        low = functional.conv2d(
            given.reshape(1, -1, *given.shape[2:]).to(down.dtype), down.flatten(0, 1), groups=rows, **self.options
        )
        added = torch.bmm(up, low.reshape(rows, down.shape[1], -1))
        return own + added.reshape(own.shape).to(own.dtype)


class SameAdded(Added):
    """What the same adapters add to every row of a layer, whatever the rows are.

    Args:
        added: The factors.
        layer: The layer: of a convolution, stride, padding and dilation are its own.
    """

    def __init__(self, added: LowRank, layer: nn.Module) -> None:
        super().__init__()
        self.down = nn.Parameter(added.down, requires_grad=False)
        self.up = nn.Parameter(added.up, requires_grad=False)
        self.options = _options(layer) if isinstance(layer, nn.Conv2d) else None

    def forward(self, given: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return the layer's own output with what is added: see :meth:`Added.forward`."""
        given = given.to(self.down.dtype)
        if self.options is None:
            low = functional.linear(given, self.down)
            return own + functional.linear(low, self.up).to(own.dtype)
        low = functional.conv2d(given, self.down, **self.options)
        return own + functional.conv2d(low, self.up[..., None, None]).to(own.dtype)


class AdaptedLayer(nn.Module):
    """A layer with what adapters add to its output.

    Args:
        layer: The layer, which stays as it is: its weights may be held in fewer bits.
        added: What is added to its output.
    """

    def __init__(self, layer: Any, added: Added) -> None:
        super().__init__()
        self.layer = layer
        self.added = added
        # Pipelines and attention ask a layer for these.
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("in_features", "out_features", "in_channels", "out_channels"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, given: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        """Return the layer's output with what is added."""
        result: torch.Tensor = self.added(given, self.layer(given, *arguments, **options))
        return result


class AdaptedFusedLayer(nn.Module):
    """A layer that gives several layers' outputs side by side, with what adapters add to each of them.

    Args:
        layer: The layer.
        parts: Outputs of each layer that it stands for, in order, and what is added to them; None for nothing.
    """

    def __init__(self, layer: Any, parts: list[tuple[int, Added | None]]) -> None:
        super().__init__()
        self.layer = layer
        self.weight, self.bias = layer.weight, layer.bias
        self.outputs = [outputs for outputs, _ in parts]
        self.parts = nn.ModuleList([nn.Identity() if added is None else added for _, added in parts])

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Return the layer's output with what is added to its parts."""
        own = self.layer(given).split(self.outputs, dim=-1)
        pairs = zip(self.parts, own, strict=True)
        return torch.cat([part(given, mine) if isinstance(part, Added) else mine for part, mine in pairs], dim=-1)


MakeAdded = Callable[[str, nn.Module], Added]
"""Makes what is added to a layer, by the layer's name within the model."""


def adapted(model: Any, names: Mapping[str, object], make: MakeAdded) -> Any:
    """Return a twin of a model in which layers have what adapters add to them.

    Args:
        model: The model, which stays as it is.
        names: The layers.
        make: Makes what is added to one.

    Raises:
        HookedModuleError: The twin would compute with the model's own layers.
    """
    layers = {name: model.get_submodule(name) for name in names}
    replaced: dict[str, nn.Module] = {name: AdaptedLayer(layer, make(name, layer)) for name, layer in layers.items()}
    for name, layer, parts in _fused(model):
        given = [(part.out_features, replaced.get(of)) for of, part in parts]
        if any(part is not None for _, part in given):
            replaced[name] = AdaptedFusedLayer(
                layer, [(outputs, part.added if isinstance(part, AdaptedLayer) else None) for outputs, part in given]
            )
    return twin_with(model, replaced)


def _fused(model: Any) -> Iterator[tuple[str, Any, list[tuple[str, Any]]]]:
    """Yield the layers that stand for several: name, layer, and names and layers of what it stands for."""
    for name, module in model.named_modules():
        if not getattr(module, "fused_projections", False):
            continue
        for fused, parts in FUSED.items():
            layer = getattr(module, fused, None)
            if layer is not None:
                inside = f"{name}." if name else ""
                yield inside + fused, layer, [(inside + part, getattr(module, part)) for part in parts]


def _options(layer: nn.Conv2d) -> dict[str, Any]:
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
