"""Rates are counted in bounded memory, and without threads."""

from __future__ import annotations

import threading
import time

import pytest
from limits import parse
from limits.strategies import FixedWindowRateLimiter

from kubediffusion.api.client_limits.rates import CounterStorage, RateLimiter
from kubediffusion.api.errors import TooManyRequestsError


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
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


def test_it_is_bounded_and_forgets_the_oldest_first(now: list[float]) -> None:
    storage = CounterStorage(capacity=100)
    for number in range(1000):
        storage.incr(f"client-{number}", 60)
    assert [storage.get(f"client-{number}") for number in range(1000)] == [0] * 900 + [1] * 100
    assert storage.reset() == 100


def test_what_has_expired_goes_before_what_counts(now: list[float]) -> None:
    storage = CounterStorage(capacity=10)
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


def test_a_use_over_any_limit_counts_against_none(now: list[float]) -> None:
    limiter = RateLimiter("2/second;3/minute", "at most {limit}")
    for _ in range(2):
        limiter.hit("me")
    for _ in range(5):
        with pytest.raises(TooManyRequestsError, match="at most 2 per 1 second") as refused:
            limiter.hit("me")
        assert refused.value.headers["Retry-After"] == "1"
    now[0] += 1.5
    limiter.hit("me")
    with pytest.raises(TooManyRequestsError, match="at most 3 per 1 minute") as refused:
        limiter.hit("me")
    assert refused.value.headers["Retry-After"] == "59"
    limiter.hit("you")
    limiter.refund("me")
    limiter.hit("me")


def test_headers_say_what_is_left_of_each_limit(now: list[float]) -> None:
    limiter = RateLimiter("5/second;20/minute", "at most {limit}")
    assert limiter.headers("me")["RateLimit"] == '"1s";r=5;t=0, "60s";r=20;t=0'
    limiter.hit("me", 3)
    now[0] += 0.5
    assert limiter.headers("me") == {
        "RateLimit-Policy": '"1s";q=5;w=1, "60s";q=20;w=60',
        "RateLimit": '"1s";r=2;t=1, "60s";r=17;t=60',
    }
    assert limiter.headers("you")["RateLimit"] == '"1s";r=5;t=0, "60s";r=20;t=0'
    now[0] += 1
    assert limiter.headers("me")["RateLimit"] == '"1s";r=5;t=0, "60s";r=17;t=59'
    assert RateLimiter("", "").headers("me") == {}
