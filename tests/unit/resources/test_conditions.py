"""Conditions change only when something did."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.conditions import Condition, ConditionStatus, find_condition, with_condition
from kubediffusion.resources.testing import NOW

Step = tuple[str, ConditionStatus, str, str]
"""Type, status, reason and message of a condition that is set."""

KINDS = ("Complete", "Failed", "Scheduled")
settings_of_one = st.tuples(
    st.sampled_from(KINDS), st.sampled_from(ConditionStatus), st.sampled_from("AB"), st.sampled_from("xy")
)


def set_all(steps: list[Step]) -> tuple[list[tuple[Condition, ...]], dt.datetime]:
    """Every state of the conditions, one second apart, and the last one's time."""
    states: list[tuple[Condition, ...]] = [()]
    now = NOW
    for kind, status, reason, message in steps:
        now += dt.timedelta(seconds=1)
        states.append(with_condition(states[-1], kind, status, reason, message, now))
    return states, now


@given(st.lists(settings_of_one, max_size=12))
def test_each_type_is_there_once_and_says_what_was_said_last(steps: list[Step]) -> None:
    states, _ = set_all(steps)
    said = {kind: (status, reason, message) for kind, status, reason, message in steps}
    assert [c.type for c in states[-1]] == list(dict.fromkeys(kind for kind, *_ in steps))
    assert {c.type: (c.status, c.reason, c.message) for c in states[-1]} == said


@given(st.lists(settings_of_one, max_size=12), settings_of_one)
def test_saying_the_same_again_gives_the_very_same_tuple(steps: list[Step], last: Step) -> None:
    states, now = set_all([*steps, last])
    assert with_condition(states[-1], *last, now + dt.timedelta(hours=1)) is states[-1]


@given(st.lists(settings_of_one, min_size=1, max_size=12))
def test_the_transition_time_moves_with_the_status_and_only_with_it(steps: list[Step]) -> None:
    states, now = set_all(steps)
    kind = steps[-1][0]
    before, after = find_condition(states[-2], kind), find_condition(states[-1], kind)
    assert after is not None
    if before is not None and before.status == after.status:
        assert after.last_transition_time == before.last_transition_time
    else:
        assert after.last_transition_time == now


@given(st.lists(settings_of_one, min_size=1, max_size=12))
def test_the_others_are_left_alone(steps: list[Step]) -> None:
    states, _ = set_all(steps)
    kind = steps[-1][0]
    assert [c for c in states[-1] if c.type != kind] == [c for c in states[-2] if c.type != kind]


def test_a_new_generation_is_something_new_to_say() -> None:
    first = with_condition((), "Available", ConditionStatus.TRUE, "Ready", "", NOW, observed_generation=1)
    later = NOW + dt.timedelta(seconds=5)
    (second,) = with_condition(first, "Available", ConditionStatus.TRUE, "Ready", "", later, observed_generation=2)
    assert (second.observed_generation, second.last_transition_time) == (2, NOW)
