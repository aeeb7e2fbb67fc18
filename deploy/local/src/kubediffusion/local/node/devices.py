"""GPUs and loopback addresses: what a pod gets from its node for as long as it runs."""

from __future__ import annotations

import itertools
from pathlib import Path

DEVICE_FOLDER = Path("/dev")
FIRST_HOST = 2
HOSTS = 256 * 256 - 1


def count_gpus(folder: Path = DEVICE_FOLDER) -> int:
    """Count this machine's NVIDIA GPUs by their device files."""
    return len(list(folder.glob("nvidia[0-9]*")))


class Devices:
    """Which pod has which GPU.

    Attributes:
        count: How many there are.
        simulated: Whether they exist in name only, so that CUDA must not be told about them.
    """

    def __init__(self, count: int, *, simulated: bool) -> None:
        self.count = count
        self.simulated = simulated
        self._owners: dict[int, str] = {}

    def assign(self, pod_uid: str, number: int) -> tuple[int, ...] | None:
        """Assign GPUs to a pod, and return their indices; None when too few are free."""
        free = [index for index in range(self.count) if index not in self._owners]
        if len(free) < number:
            return None
        chosen = tuple(free[:number])
        self._owners |= dict.fromkeys(chosen, pod_uid)
        return chosen

    def release(self, pod_uid: str) -> None:
        """Free a pod's GPUs."""
        self._owners = {index: owner for index, owner in self._owners.items() if owner != pod_uid}

    def variables(self, indices: tuple[int, ...]) -> dict[str, str]:
        """Return the environment that shows a process its GPUs, and hides the others from it."""
        listed = ",".join(map(str, indices))
        if not self.simulated:
            return {"CUDA_VISIBLE_DEVICES": listed}
        # A worker that was given a GPU takes no CPU unless it is told to.
        return {"KUBEDIFFUSION_GPU_INDEX": listed, "KUBEDIFFUSION_DEVICE": "cpu"} if indices else {}


class Addresses:
    """Which pod has which address of the node's loopback network."""

    def __init__(self, network: str) -> None:
        self._network = network
        self._next = itertools.cycle(range(FIRST_HOST, HOSTS))
        self._taken: dict[str, str] = {}

    def assign(self, pod_uid: str) -> str:
        """Assign an address to a pod, and return it. An address that was released is used again as late as possible."""
        for number in self._next:
            address = f"{self._network}.{number // 256}.{number % 256}"
            if address not in self._taken.values():
                self._taken[pod_uid] = address
                return address
        raise AssertionError("a cycle does not end")

    def release(self, pod_uid: str) -> None:
        """Free a pod's address."""
        self._taken.pop(pod_uid, None)
