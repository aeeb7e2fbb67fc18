"""The adapters of a batch's images: a slot for each image, in memory that stays where it is.

*What it costs.* A slot takes ``rank * (inputs + outputs)`` numbers for each layer that any adapter so far has named:
of FLUX.1 with its 418 large layers at rank 64, 0.49 GiB in bfloat16; with its attention alone, 0.19 GiB. To fill one,
the adapter's factors are copied on the device, which waits for nobody; a slot that holds them already, from the job's
last image, is left as it is. An adapter that names layers that none before it named lengthens the step: it is captured
and compiled anew, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from kubediffusion.worker.execution.adapters.modules import Added, SlotsAdded, SlotsAddedToConvolution, adapted
from kubediffusion.worker.execution.adapters.weights import Layers, LowRank
from kubediffusion.worker.families.base import ModelFamily

_DIGITS = 16
"""Hexadecimal digits of a digest of names: enough that no two of one model are alike."""


class AdapterSlots:
    """Slots for the adapters of a batch's images. Belongs to the engine's thread.

    All batches of an engine share them: before each step they are given what its images need, and copy what differs.

    Args:
        family: Whose denoiser's layers are adapted.
        count: The most slots.
        rank: The rank of every slot: that of an image's adapters together, at most.

    Attributes:
        rank: The rank of every slot.
        version: Number of the set of layers, from 1; 0 while there is none. A step belongs to one version.
    """

    def __init__(self, family: ModelFamily, count: int, rank: int) -> None:
        self._family = family
        self._count = count
        self.rank = rank
        self._dtype = family.denoiser_dtype
        self._factors: dict[str, LowRank] = {}
        self._held: list[Layers | None] = [None] * count
        self._families: dict[tuple[int, int], ModelFamily] = {}
        self.version = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(factors.nbytes for factors in self._factors.values())

    def extend(self, layers: Layers) -> None:
        """Give every slot room for layers that none has room for yet.

        Raises:
            torch.OutOfMemoryError: There is no memory for it.
        """
        missing = sorted(layers.keys() - self._factors.keys())
        if not missing:
            return
        self._factors |= {name: self._empty(layers[name]) for name in missing}
        self._families.clear()
        self.version += 1

    def _empty(self, like: LowRank) -> LowRank:
        device = like.down.device
        down = torch.zeros(self._count, self.rank, *like.down.shape[1:], device=device, dtype=self._dtype)
        up = torch.zeros(self._count, len(like.up), self.rank, device=device, dtype=self._dtype)
        return LowRank(down, up)

    def fill(self, wanted: Mapping[int, Layers]) -> None:
        """Put into each slot what its image needs; the slots of other images are left as they are.

        Args:
            wanted: What is added, by slot; nothing for an image without adapters. All layers have room.
        """
        targets: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        zeros: list[torch.Tensor] = []
        filled: dict[int, Layers] = {}
        for slot, layers in wanted.items():
            held = self._held[slot]
            if held is layers or (not held and not layers):
                continue
            for name, factors in self._factors.items():
                added = layers.get(name)
                used = 0 if added is None else added.rank
                if added is not None:
                    targets += [factors.down[slot, :used], factors.up[slot, :, :used]]
                    sources += [added.down, added.up]
                # A factor that is not of this image must be zero in both: what overflows would give no number.
                before = held.get(name) if held else None
                if before is not None and before.rank > used:
                    zeros += [factors.down[slot, used : before.rank], factors.up[slot, :, used : before.rank]]
            filled[slot] = layers
        if targets:
            torch._foreach_copy_(targets, sources)
        if zeros:
            torch._foreach_zero_(zeros)
        # Only now: where a copy raised, the next try makes it again.
        for slot, layers in filled.items():
            self._held[slot] = layers

    def family(self, size: int, rows: int) -> ModelFamily:
        """Return the family with a denoiser that adds to each row what its image's slot holds.

        Args:
            size: Slots that are computed.
            rows: Rows of each image: two with classifier-free guidance.
        """
        if (size, rows) not in self._families:

            def make(name: str, layer: nn.Module) -> Added:
                factors = LowRank(self._factors[name].down[:size], self._factors[name].up[:size])
                if isinstance(layer, nn.Conv2d):
                    return SlotsAddedToConvolution(factors, rows, layer)
                return SlotsAdded(factors, rows, self._family.row_layout(name))

            twin = adapted(self._family.denoiser, self._factors, make)
            variant = f"adapters of {rows} by {size} rows, {self._described()}"
            self._families[size, rows] = self._family.with_denoiser(twin, variant)
        return self._families[size, rows]

    def _described(self) -> str:
        """Name what compiled code depends on of the slots: their rank and layers."""
        digest = hashlib.sha256("\n".join(sorted(self._factors)).encode()).hexdigest()[:_DIGITS]
        return f"rank {self.rank}, layers {digest}"
