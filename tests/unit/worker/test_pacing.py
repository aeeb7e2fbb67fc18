"""When progress is written."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.worker.pacing import TICK, Standing, next_due


def test_nothing_is_said_in_the_first_second() -> None:
    assert next_due([Standing("job", began=10.0, step=3)], 10.9) is None
    assert next_due([Standing("job", began=10.0, step=3)], 11.0) == "job"


def test_nothing_is_said_without_news() -> None:
    assert next_due([Standing("job", 10.0, step=3, written_at=11.0, written_step=3)], 20.0) is None


def test_who_waits_the_longest_comes_first() -> None:
    standings = [Standing("a", 1.0, 5, 4.0, 4), Standing("b", 1.0, 5, 3.0, 4), Standing("c", 5.0, 1)]
    assert next_due(standings, 9.0) == "b"


@given(st.integers(1, 30))
def test_a_worker_writes_ten_times_a_second_and_a_job_once(jobs: int) -> None:
    written: dict[int, list[float]] = {job: [] for job in range(jobs)}
    for tick in range(100):
        now = tick * TICK
        standings = [
            Standing(job, 0.0, tick, times[-1] if times else None, round(times[-1] / TICK) if times else None)
            for job, times in written.items()
        ]
        due = next_due(standings, now)
        if due is not None:
            written[due].append(now)
    for times in written.values():
        assert all(after - before >= 0.999 for before, after in itertools.pairwise(times))
    # Nobody is forgotten.
    assert all(written.values())
