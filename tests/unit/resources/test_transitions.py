"""The state machine's laws. That the API server keeps them too is tests/integration/resources' to show."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.transitions import BOUND, TERMINAL, TRANSITIONS, Writer, allowed, targets

writes = st.lists(st.tuples(st.sampled_from(Writer), st.sampled_from(Phase)), max_size=30)


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_a_terminal_phase_is_never_left(phase: Any) -> None:
    assert targets(phase) == frozenset()
    assert not any(allowed(writer, phase, new) for writer in Writer for new in Phase)


@pytest.mark.parametrize("phase", sorted(set(Phase) - TERMINAL))
def test_every_other_phase_can_still_end_and_be_written_over_with_itself(phase: Any) -> None:
    assert phase in targets(phase)
    assert targets(phase) >= {Phase.FAILED, Phase.CANCELLED}


@given(writes)
def test_a_job_ends_at_most_once_whatever_is_written(attempts: Any) -> None:
    """The phases that a job goes through, when each write that the table refuses is dropped."""
    history = [Phase.PENDING]
    for writer, new in attempts:
        if allowed(writer, history[-1], new):
            history.append(new)
    assert sum(phase in TERMINAL for phase in history) <= 1
    assert not TERMINAL & set(history[:-1])


@given(writes)
def test_a_job_never_runs_or_succeeds_without_having_been_bound(attempts: Any) -> None:
    phase, bound = Phase.PENDING, False
    for writer, new in attempts:
        if allowed(writer, phase, new):
            assert bound or new not in {Phase.RUNNING, Phase.SUCCEEDED}
            phase, bound = new, new in BOUND


@given(st.sampled_from(Phase), st.sampled_from(Phase))
def test_only_failing_a_bound_job_is_a_right_of_both_writers(old: Any, new: Any) -> None:
    if allowed(Writer.OPERATOR, old, new) and allowed(Writer.WORKER, old, new):
        assert new is Phase.FAILED
        assert old in BOUND


@given(st.sampled_from(Phase))
def test_running_and_succeeded_are_the_workers_words_alone(old: Any) -> None:
    assert not allowed(Writer.OPERATOR, old, Phase.RUNNING)
    assert not allowed(Writer.OPERATOR, old, Phase.SUCCEEDED)


@given(st.sampled_from(Phase))
def test_binding_requeueing_and_cancelling_are_the_operators_alone(old: Any) -> None:
    assert not any(allowed(Writer.WORKER, old, new) for new in (Phase.PENDING, Phase.SCHEDULED, Phase.CANCELLED))


def test_a_worker_has_nothing_to_say_of_a_job_that_is_not_bound() -> None:
    assert set(TRANSITIONS[Writer.WORKER]) == BOUND


def test_every_phase_can_be_reached() -> None:
    reached, fresh = set(), {Phase.PENDING}
    while fresh:
        reached |= fresh
        fresh = {new for old in fresh for new in targets(old)} - reached
    assert reached == set(Phase)
