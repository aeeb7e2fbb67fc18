"""Which worker has room for a job: places of its batches, and who is tried with whom after a crash. Pure.

Who of several jobs made their worker die is found by halving (docs/adr/0019): they run again, at most half as many
together as before, and with no others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field


def most_together(suspect_group_sizes: Iterable[int]) -> int:
    """Return how many suspects may be tried together: half as many as the fewest among whom one of them is suspected.

    Args:
        suspect_group_sizes: For each of them, among how many it is suspected; at least one.
    """
    return max(min(suspect_group_sizes) // 2, 1)


@dataclass
class WorkerCapacity:
    """A ready worker, while a pass binds jobs to it.

    Attributes:
        pod: Name of its Pod.
        free: Places of its batches that are free.
        suspect_group_sizes: For each of its jobs, among how many it is suspected; 0 for one that is not.
        adapters: Names of the adapters that it holds, or loads for a job that it has.
    """

    pod: str
    free: int
    suspect_group_sizes: list[int]
    adapters: set[str] = field(default_factory=set)

    def takes(self, suspect_group_size: int) -> bool:
        """Return whether it may get a job that is suspected in a group of this size; 0 for one that is not."""
        together = [*self.suspect_group_sizes, suspect_group_size]
        if self.free <= 0:
            return False
        if not any(together):
            return True
        return all(together) and len(together) <= most_together(together)

    def take(self, slots: int, suspect_group_size: int, adapters: Iterable[str] = ()) -> None:
        """Count a job that is bound to it.

        Args:
            slots: Places of a batch that the job takes.
            suspect_group_size: Among how many it is suspected; 0 for one that is not.
            adapters: Names of the adapters that the job names.
        """
        self.free -= slots
        self.suspect_group_sizes.append(suspect_group_size)
        self.adapters.update(adapters)


def best_place(places: Iterable[WorkerCapacity], adapters: Collection[str]) -> WorkerCapacity:
    """Return the place that a job gets: of the least loaded workers one that holds most of its adapters.

    To hold an adapter weighs less than any load: it saves a fetch, once, and a worker with more room a job's wait.

    Args:
        places: Workers that take the job; at least one.
        adapters: Names of the adapters that the job names.
    """
    return max(places, key=lambda place: (place.free, len(place.adapters.intersection(adapters)), place.pod))
