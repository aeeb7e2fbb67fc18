"""Probe thresholds count answers in a row."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.local.node.objects import Probe
from kubediffusion.local.node.probes import ProbeState

PROBE = Probe(success_threshold=2, failure_threshold=3)


def verdicts(answers: Any, probe: Probe = PROBE) -> list[bool | None]:
    state, seen = ProbeState(), list[bool | None]()
    for answer in answers:
        state = state.observe(answer, probe)
        seen.append(state.verdict)
    return seen


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("+", [None]),
        ("++", [None, True]),
        ("+-+", [None, None, None]),
        ("++--", [None, True, True, True]),
        ("++---", [None, True, True, True, False]),
        ("++--+--", [None, True, True, True, True, True, True]),
        ("---++", [None, None, False, False, True]),
    ],
)
def test_a_verdict_takes_as_many_equal_answers_as_its_threshold(answers: Any, expected: list[bool | None]) -> None:
    assert verdicts(answer == "+" for answer in answers) == expected


@given(st.lists(st.booleans()), st.integers(min_value=1, max_value=4), st.integers(min_value=1, max_value=4))
def test_a_verdict_changes_at_the_end_of_a_long_enough_run_and_never_else(
    answers: Any, success: int, failure: int
) -> None:
    seen = [None, *verdicts(answers, Probe(success_threshold=success, failure_threshold=failure))]
    for index, (before, after) in enumerate(pairwise(seen), start=1):
        last = answers[index - 1]
        threshold = success if last else failure
        long_enough = index >= threshold and set(answers[index - threshold : index]) == {last}
        assert after == (last if long_enough else before)
