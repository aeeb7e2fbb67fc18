"""How long what is refused is tried again."""

from __future__ import annotations

import pytest

from kubediffusion.resources.testing import present
from kubediffusion.worker.refusal_backoff import LONGEST_PAUSE, RefusalBackoff


class Clock:
    """A clock that is set by hand, in seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("seconds", [1.0, 300.0, 3600.0])
def test_what_is_refused_is_tried_for_its_time_and_once_at_its_end(seconds: float) -> None:
    clock = Clock()
    refusals, began, pauses = RefusalBackoff(seconds, clock), clock.now, []
    while (pause := refusals.next_pause()) is not None:
        assert 0 < pause <= LONGEST_PAUSE
        pauses.append(pause)
        clock.now += pause
    assert clock.now - began == pytest.approx(seconds)
    # Some tries in the first minute, then hardly more than two a minute.
    assert 1 <= len(pauses) <= 12 + seconds / (LONGEST_PAUSE / 2)


def test_another_answer_in_between_begins_anew() -> None:
    clock = Clock()
    refusals = RefusalBackoff(10.0, clock)
    refusals.next_pause()
    clock.now += 9.0
    refusals.reset()
    assert present(refusals.next_pause()) < 1.0
    clock.now += 9.0
    assert refusals.next_pause() is not None
    clock.now += 1.0
    assert refusals.next_pause() is None
