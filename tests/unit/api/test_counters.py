"""Limits are counted in bounded memory, and without threads."""

from __future__ import annotations

import threading

import pytest
from limits import parse
from limits.strategies import FixedWindowRateLimiter

from kubediffusion.api.client_limits import counters
from kubediffusion.api.client_limits.counters import CounterStorage


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr(counters.time, "time", lambda: clock[0])
    return clock


def test_a_window_begins_with_the_first_hit_and_ends(now: list[float]) -> None:
    limiter, limit = FixedWindowRateLimiter(CounterStorage()), parse("2/minute")
    assert [limiter.hit(limit, "me") for _ in range(3)] == [True, True, False]
    assert limiter.hit(limit, "you")
    assert limiter.get_window_stats(limit, "me").reset_time == 1060
    now[0] = 1059.9
    assert not limiter.test(limit, "me")
    now[0] = 1060.1
    assert limiter.test(limit, "me")
    assert [limiter.hit(limit, "me") for _ in range(3)] == [True, True, False]


def test_it_is_bounded_and_forgets_the_oldest_first(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "CAPACITY", 100)
    storage = CounterStorage()
    for number in range(1000):
        storage.incr(f"client-{number}", 60)
        assert len(storage._counters) <= 100
    assert storage.get("client-999") == 1
    assert storage.get("client-0") == 0


def test_what_has_expired_goes_before_what_counts(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "CAPACITY", 10)
    storage = CounterStorage()
    storage.incr("patient", 3600)
    for number in range(8):
        storage.incr(f"brief-{number}", 1)
    now[0] += 2
    for number in range(3):
        storage.incr(f"later-{number}", 1)
    assert storage.get("patient") == 1


def test_what_is_taken_back_was_counted_in_the_window(now: list[float]) -> None:
    storage = CounterStorage()
    storage.decr("me")
    assert storage.get("me") == 0
    storage.incr("me", 1)
    storage.incr("me", 1)
    storage.decr("me")
    assert storage.get("me") == 1
    now[0] += 2
    storage.decr("me")
    storage.incr("me", 1)
    assert storage.get("me") == 1


def test_no_thread_is_started() -> None:
    storage = CounterStorage()
    before = threading.active_count()
    for _ in range(100):
        storage.incr("me", 60)
    assert threading.active_count() == before
