"""When progress is written."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.worker.pacing import WORKER_PERIOD, ProgressState, next_due


def test_nothing_is_said_in_the_first_second() -> None:
    assert next_due([ProgressState("job", started_at=10.0, step=3)], 10.9) is None
    assert next_due([ProgressState("job", started_at=10.0, step=3)], 11.0) == "job"


def test_nothing_is_said_without_news() -> None:
    assert next_due([ProgressState("job", 10.0, step=3, written_at=11.0, written_step=3)], 20.0) is None


def test_a_job_whose_writes_are_not_accepted_is_written_less_often() -> None:
    refused = ProgressState("job", started_at=0.0, step=5, written_at=10.0, written_step=4, period=4.0)
    assert [next_due([refused], now) for now in (11.0, 13.9, 14.0)] == [None, None, "job"]


def test_who_waits_the_longest_comes_first() -> None:
    states = [ProgressState("a", 1.0, 5, 4.0, 4), ProgressState("b", 1.0, 5, 3.0, 4), ProgressState("c", 5.0, 1)]
    assert next_due(states, 9.0) == "b"


@given(st.integers(1, 30))
def test_a_worker_writes_ten_times_a_second_and_a_job_once(jobs: int) -> None:
    written: dict[int, list[float]] = {job: [] for job in range(jobs)}
    for tick in range(100):
        now = round(tick * WORKER_PERIOD, 1)
        states = [
            ProgressState(
                job, 0.0, tick, times[-1] if times else None, round(times[-1] / WORKER_PERIOD) if times else None
            )
            for job, times in written.items()
        ]
        due = next_due(states, now)
        if due is not None:
            written[due].append(now)
    for times in written.values():
        assert all(after - before >= 0.999 for before, after in itertools.pairwise(times))
    # From the end of the first second on, as often as either limit lets it: nobody is forgotten.
    assert sum(map(len, written.values())) == min(9 * jobs, 90)
    assert {len(times) for times in written.values()} <= {9} if jobs < 10 else {90 // jobs, 90 // jobs + 1}
