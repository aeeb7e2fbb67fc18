"""The low-rank weights of adapters: what a file adds to each layer, and what several of them add together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to one layer's output: ``up @ down @ input`` (https://arxiv.org/abs/2106.09685).

    Attributes:
        down: ``[rank, inputs]``; of a convolution ``[rank, inputs, height, width]``.
        up: ``[outputs, rank]``, scale included.
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        """Number of inner dimensions."""
        return len(self.down)

    @property
    def nbytes(self) -> int:
        """Bytes of both factors."""
        return self.down.nbytes + self.up.nbytes

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        """Return a copy on a device. From pinned memory the copy waits for nobody."""
        return LowRank(_moved(self.down, device, dtype), _moved(self.up, device, dtype))


Layers = Mapping[str, LowRank]
"""What is added to a module's layers, by their names within it."""


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter as its file has it, in main memory: see :class:`kubediffusion.worker.engine.adapters.AdapterWeights`.

    Attributes:
        digest: SHA-256 of the file, in hexadecimal.
        components: What it adds, by component of the pipeline, such as ``transformer``.
    """

    digest: str
    components: Mapping[str, Layers]

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(added.rank for layers in self.components.values() for added in layers.values())

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(added.nbytes for layers in self.components.values() for added in layers.values())


def joined(parts: Iterable[tuple[Layers, float]], device: torch.device, dtype: torch.dtype) -> dict[str, LowRank]:
    """Join what several adapters add to one module: along the rank, each by its scale, which goes into ``up``.

    Args:
        parts: What each adds, and its scale.
        device: Where the result lies.
        dtype: Numbers of the result. Scales are multiplied in float32.
    """
    found: dict[str, list[LowRank]] = {}
    for layers, scale in parts:
        for name, added in layers.items():
            found.setdefault(name, []).append(LowRank(added.down, added.up.float() * scale))
    return {
        name: LowRank(torch.cat([part.down for part in added]), torch.cat([part.up for part in added], dim=1)).to(
            device, dtype
        )
        for name, added in found.items()
    }


def _moved(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    converted = tensor.to(dtype)
    if device.type != "cuda":
        return converted.to(device)
    return converted.pin_memory().to(device, non_blocking=True)
