"""The machines of the keys that were used last."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kubediffusion.worker.engine import BatchKey
from kubediffusion.worker.execution.local_executor import Machine

MOST = 4
"""Keys for which tensors and graphs are kept; jobs of one model seldom ask for more sizes."""


class Machines:
    """Machines by key, each prepared at its first use; the one that was used longest ago makes room for another.

    Args:
        prepare: Prepares the machine of a key.
    """

    def __init__(self, prepare: Callable[[BatchKey], Machine]) -> None:
        self._prepare = prepare
        self._machines: dict[BatchKey, Machine] = {}
        self._kept: Machine | None = None

    def __iter__(self) -> Iterator[Machine]:
        return iter(self._machines.values())

    def __len__(self) -> int:
        return len(self._machines)

    def known(self, key: BatchKey) -> Machine | None:
        """Return the machine of a key; None where none is prepared."""
        return self._machines.get(key)

    def of(self, key: BatchKey) -> Machine:
        """Return the machine of a key, prepared at its first use."""
        machine = self._machines.pop(key, None)
        if machine is None:
            while len(self._machines) >= MOST:
                del self._machines[next(other for other, made in self._machines.items() if made is not self._kept)]
            machine = self._prepare(key)
        self._machines[key] = machine
        return machine

    def keep(self, machine: Machine) -> None:
        """Keep a machine for as long as the engine lives, however long it is not used."""
        self._kept = machine
