"""Which images of a batch give their slots to more urgent ones, and who enters first: functions of how far they are.

A parked image keeps its steps: its latents, past outputs and conditions are copied to the host's memory, and back into
a slot when it goes on. What that costs is one slot's tensors each way, and that the host waits once for the step that
runs; no step is made twice, and in the same slot of a batch as large no byte of the image differs.

Nobody starves: an image gives way at most :data:`MOST_PARKS` times, and when it has waited for as many steps as it
needs itself, it goes before all others, whatever their priority, and stays (:attr:`RequestState.aged`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kubediffusion.worker.engine.interface import Parkable
from kubediffusion.worker.engine.request import ImageId, ImageRequest

MUCH_SHORTER = 4
"""By what factor an image needs fewer calls than another has left, to go before it at the same priority."""

MOST_PARKS = 8
"""How often an image gives way to others of its batch."""

PriorityOf = Callable[[ImageId], int]
"""Returns the priority of an image's job, as it is now."""


@dataclass(eq=False)
class RequestState:
    """How far an image is.

    Attributes:
        request: What is asked for.
        calls: How often the model is called for it.
        call: Calls that are done.
        parks: How often it gave its slot, or its turn, to a more urgent image.
        waited: Steps for which it had no slot since it first did so.
    """

    request: ImageRequest
    calls: int
    call: int = 0
    parks: int = 0
    waited: int = 0

    @property
    def left(self) -> int:
        """Calls of the model that are left."""
        return self.calls - self.call

    @property
    def aged(self) -> bool:
        """Whether it gave way for as many steps as it needs itself: it goes before all others, and stays."""
        return self.parks > 0 and self.waited >= self.calls

    @property
    def may_give_way(self) -> bool:
        """Whether it may be parked. Who is at its last step is out of the way soonest when it makes that."""
        return self.parks < MOST_PARKS and not self.aged and self.left > 1


def goes_before(priority: int, calls: int, other_priority: int, other_left: int) -> bool:
    """Return whether an image that needs so many calls goes before images that have so many left."""
    return priority > other_priority or (priority == other_priority and calls * MUCH_SHORTER <= other_left)


def image_to_park(priority: int, calls: int, parkable: Sequence[Parkable]) -> int | None:
    """Choose who gives its slot to an image: of the lowest priority, and of those the one with the most calls left.

    Args:
        priority: The image's.
        calls: Calls that it needs.
        parkable: Who may be parked.

    Returns:
        A place in ``parkable``; None where the image goes before none of them.
    """
    places = [place for place, other in enumerate(parkable) if goes_before(priority, calls, other.priority, other.left)]
    return min(places, key=lambda place: (parkable[place].priority, -parkable[place].left), default=None)


def parkable(state: RequestState, priority: PriorityOf) -> Parkable:
    """Return what decides whether an image is parked for another."""
    return Parkable(priority(state.request.id), state.left)


def in_order(states: Iterable[RequestState], priority: PriorityOf) -> list[RequestState]:
    """Return images in the order in which they enter; of the same priority those first that have begun."""
    return sorted(states, key=lambda state: (not state.aged, -priority(state.request.id), not state.call))


def is_due(state: RequestState, is_overdue: Callable[[ImageId], bool]) -> bool:
    """Return whether an image enters now where there is a slot.

    Args:
        state: The image.
        is_overdue: Returns whether an image has waited long enough to enter the batch; what bounds the wait of one that
            entered and was parked is its age.
    """
    return state.aged or (not (state.parks and state.call) and is_overdue(state.request.id))


def swapped(
    urgent: Iterable[RequestState], others: Sequence[RequestState], priority: PriorityOf
) -> list[tuple[RequestState, RequestState]]:
    """Choose who gives way to whom.

    Args:
        urgent: Images that are ready, and for which there is no slot.
        others: Those that have one, or would enter now.
        priority: Returns an image's priority.

    Returns:
        Who gets a slot, and who gives it up: each image once, and none without need.
    """
    others = [state for state in others if state.may_give_way]
    pairs: list[tuple[RequestState, RequestState]] = []
    for state in sorted(urgent, key=lambda state: (not state.aged, -priority(state.request.id), state.left)):
        rank = sys.maxsize if state.aged else priority(state.request.id)
        place = image_to_park(rank, state.left, [parkable(other, priority) for other in others])
        if place is not None:
            pairs.append((state, others.pop(place)))
    return pairs
