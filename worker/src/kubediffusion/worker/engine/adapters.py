"""The adapters that an image is made with. Values without torch: what weights are, only the engine knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from kubediffusion.resources.conditions import AdapterReason


class AdapterRefusedError(Exception):
    """An adapter cannot be used with the model, and another attempt would not change that.

    Attributes:
        reason: Why.
        message: Why, for people: what was found, and the remedy.
    """

    def __init__(self, reason: AdapterReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def check_file_size(name: str, size: int, most: int) -> None:
    """Refuse an adapter's file that is larger than all adapters of a worker may be, before it is fetched or read.

    Args:
        name: The file.
        size: Its bytes.
        most: Bytes of main memory for adapters.

    Raises:
        AdapterRefusedError: It is.
    """
    if size > most:
        raise AdapterRefusedError(
            AdapterReason.UNKNOWN_KEYS,
            f"{name} has {size} bytes, more than all adapters of this worker may have "
            "(KUBEDIFFUSION_ADAPTER_CACHE_MIB): a file of this size is a whole model's",
        )


class AdapterWeights(Protocol):
    """What :meth:`.Engine.read_adapter` read of a file. Only the engine that read it looks inside."""

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal."""

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""

    @property
    def nbytes(self) -> int:
        """Bytes of main memory that it takes."""


@dataclass(frozen=True)
class ImageAdapter:
    """An adapter that an image is made with. Two are the same whose content and scale are.

    Attributes:
        digest: SHA-256 of its file, in hexadecimal.
        scale: How strongly it counts.
        weights: What it adds to the model's weights.
    """

    digest: str
    scale: float
    weights: AdapterWeights = field(repr=False, compare=False)

    @property
    def identity(self) -> tuple[str, float]:
        """Content and scale, for what is kept by it: a cache that kept the adapter would keep its weights."""
        return self.digest, self.scale
