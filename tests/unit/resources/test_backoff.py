"""Pauses double up to the longest, for as long as it may fail."""

from __future__ import annotations

import pytest

from kubediffusion.resources.backoff import Backoff, Backoffs, pause_after


@pytest.mark.parametrize(("failures", "pause"), [(1, 0.1), (2, 0.2), (3, 0.4), (7, 6.4), (8, 10), (100_000, 10)])
def test_a_pause_doubles_with_each_failure_up_to_the_longest(failures: int, pause: float) -> None:
    assert pause_after(failures, 0.1, 10) == pytest.approx(pause)


def test_a_backoff_goes_through_the_pauses_each_shortened_by_half_at_most() -> None:
    backoff = Backoff(1, 8)
    for whole in (1, 2, 4, 8, 8):
        assert whole / 2 <= backoff.next_pause() <= whole


def test_what_has_worked_begins_anew() -> None:
    backoff = Backoff(1, 8)
    for _ in range(5):
        backoff.next_pause()
    backoff.reset()
    assert 0.5 <= backoff.next_pause() <= 1


def test_each_key_has_pauses_of_its_own_until_it_is_forgotten() -> None:
    backoffs = Backoffs(1.0, 60.0)
    assert "a" not in backoffs
    assert 0.5 <= backoffs.next_pause("a") <= 1.0 <= backoffs.next_pause("a") <= 2.0
    assert "a" in backoffs
    assert backoffs.next_pause("b") <= 1.0
    assert backoffs.next_pause("a") >= 2.0
    backoffs.forget("a")
    assert "a" not in backoffs
    assert backoffs.next_pause("a") <= 1.0
    backoffs.forget("never failed")
