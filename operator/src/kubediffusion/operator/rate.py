"""How often people are told: explanations so many a second, and the numbers of a model once a second.

``limits``, which the API takes, counts single hits: a pass asks how many explanations it may give before it decides,
and takes those that it gave (docs/adr/0017).
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

from kubediffusion.operator.actions import ReportModel
from kubediffusion.resources.backoff import Backoffs
from kubediffusion.resources.conditions import ModelConditionType, find_condition
from kubediffusion.resources.diffusion_model import DiffusionModel, DiffusionModelStatus

REPORT_PERIOD = dt.timedelta(seconds=1)
"""Time between two writes of a model's status, unless it can be used now, or no longer."""


class TokenBucket:
    """A token bucket that holds one second's worth of tokens, and one at least.

    Args:
        rate: Tokens a second.
        clock: Returns the time in seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._capacity = max(rate, 1.0)
        self._tokens = self._capacity
        self._refilled = clock()

    @property
    def available(self) -> int:
        """How many tokens may be taken now."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + self._rate * (now - self._refilled))
        self._refilled = now
        return int(self._tokens)

    def take(self) -> None:
        """Take one token."""
        self._tokens -= 1


FIRST_ERROR_PAUSE = 1.0
LONGEST_ERROR_PAUSE = 60.0
"""Seconds until what raised is tried again, at first and at most."""


class ErrorBackoffs:
    """When what raised an error is tried again, by a key of each object."""

    def __init__(self) -> None:
        self._backoffs = Backoffs(FIRST_ERROR_PAUSE, LONGEST_ERROR_PAUSE)
        self._retries: dict[str, dt.datetime] = {}

    def retry_at(self, key: str) -> dt.datetime | None:
        """Return when an object is tried again; None where nothing was raised."""
        return self._retries.get(key)

    def record(self, key: str, now: dt.datetime) -> dt.datetime:
        """Count an error, and return when to try again."""
        self._retries[key] = now + dt.timedelta(seconds=self._backoffs.next_pause(key))
        return self._retries[key]

    def forget(self, key: str) -> None:
        """Forget the errors of an object: it has worked, or is gone."""
        self._backoffs.forget(key)
        self._retries.pop(key, None)


class ReportRate:
    """Decides when a model's status is written: whether it can be used at once, numbers once in a period."""

    def __init__(self) -> None:
        self._reported: dict[str, dt.datetime] = {}

    def next_report(
        self, model: DiffusionModel, status: DiffusionModelStatus, now: dt.datetime
    ) -> ReportModel | dt.datetime | None:
        """Return the report to write now, or when it is due; None when the model's status says all.

        Args:
            model: The model, with the status that it has.
            status: The status that it should have.
            now: The time.
        """
        if status == model.status:
            return None
        due = self._reported.get(model.uid, now - REPORT_PERIOD) + REPORT_PERIOD
        if now < due and _urgent(status) == _urgent(model.status):
            return due
        self._reported[model.uid] = now
        return ReportModel(model, status)

    def forget_model(self, model: DiffusionModel) -> None:
        """Drop what is kept of a model that is gone."""
        self._reported.pop(model.uid, None)


def _urgent(status: DiffusionModelStatus) -> object:
    """Return what is written at once when it changes. Words are not: while a worker starts they tell its progress."""
    condition = find_condition(status.conditions, ModelConditionType.AVAILABLE)
    return condition and (condition.status, condition.reason, condition.observed_generation)
