"""The prepared batches of the keys that were used last."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kubediffusion.worker.engine import BatchKey
from kubediffusion.worker.execution.local_executor import PreparedBatch

MOST = 4
"""Keys for which tensors and graphs are kept; jobs of one model seldom ask for more sizes."""


class PreparedBatches:
    """Prepared batches by key, each made at its first use; the one that was used longest ago makes room for another.

    Args:
        prepare: Prepares the batch of a key.
    """

    def __init__(self, prepare: Callable[[BatchKey], PreparedBatch]) -> None:
        self._prepare = prepare
        self._batches: dict[BatchKey, PreparedBatch] = {}
        self._kept: PreparedBatch | None = None

    def __iter__(self) -> Iterator[PreparedBatch]:
        return iter(self._batches.values())

    def __len__(self) -> int:
        return len(self._batches)

    def known(self, key: BatchKey) -> PreparedBatch | None:
        """Return the batch of a key; None where none is prepared."""
        return self._batches.get(key)

    def of(self, key: BatchKey) -> PreparedBatch:
        """Return the batch of a key, prepared at its first use."""
        prepared = self._batches.pop(key, None)
        if prepared is None:
            while len(self._batches) >= MOST:
                del self._batches[next(other for other, made in self._batches.items() if made is not self._kept)]
            prepared = self._prepare(key)
        self._batches[key] = prepared
        return prepared

    def keep(self, prepared: PreparedBatch) -> None:
        """Keep a batch for as long as the engine lives, however long it is not used."""
        self._kept = prepared
