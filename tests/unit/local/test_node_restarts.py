"""Restart policies and the crash back-off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.local.node.restarts import CrashBackoff, should_restart


@pytest.mark.parametrize(
    ("policy", "exit_code", "restarted"),
    [
        ("Always", 0, True),
        ("Always", 1, True),
        ("OnFailure", 0, False),
        ("OnFailure", 1, True),
        ("Never", 0, False),
        ("Never", 1, False),
    ],
)
def test_the_policy_decides_who_starts_again(policy: str, exit_code: int, restarted: bool) -> None:
    assert should_restart(policy, exit_code) is restarted


def test_the_wait_doubles_from_ten_seconds_to_five_minutes() -> None:
    backoff = CrashBackoff()
    assert [backoff.delay(crashes) for crashes in range(1, 9)] == [0, 10, 20, 40, 80, 160, 300, 300]


@given(st.integers(min_value=1, max_value=10**9))
def test_the_wait_never_exceeds_its_limit(crashes: int) -> None:
    assert 0 <= CrashBackoff(initial=0.5, limit=2).delay(crashes) <= 2


def test_a_long_run_makes_former_crashes_forgotten() -> None:
    backoff = CrashBackoff(forgiven_after=600)
    assert backoff.count(5, ran_seconds=599) == 6
    assert backoff.count(5, ran_seconds=600) == 1
