"""How often people are told: explanations so many a second, the numbers of a model once a second, adapters too.

``limits``, which the API takes, counts single hits: a pass asks how many explanations it may give before it decides,
and takes those that it gave (docs/adr/0017).
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

from kubediffusion.operator.actions import ReportAdapter, ReportModel
from kubediffusion.resources.backoff import Backoffs
from kubediffusion.resources.conditions import ModelConditionType, find_condition
from kubediffusion.resources.diffusion_model import DiffusionModel, DiffusionModelStatus
from kubediffusion.resources.lora_adapter import LoRAAdapter, LoRAAdapterStatus

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
        """Take one token; more than there are may be taken, and are owed."""
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


ADAPTER_REPORTS_A_SECOND = 10.0
"""Writes of adapters' statuses in all: a worker that goes changes those of all that it held."""


class AdapterReportRate:
    """Decides when an adapter's status is written: once in a period each, and so many a second of all.

    Args:
        rate: Writes a second.
        clock: Returns the time in seconds.
    """

    def __init__(self, rate: float = ADAPTER_REPORTS_A_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        self._reported: dict[str, dt.datetime] = {}
        self._settled: dict[str, tuple[LoRAAdapter, object]] = {}
        self._tokens = TokenBucket(rate, clock)

    def is_settled(self, adapter: LoRAAdapter, observed: object) -> bool:
        """Return whether an adapter's status said all when this very state of it was last seen beside the same.

        There may be thousands of adapters, and a pass every few milliseconds.

        Args:
            adapter: The adapter.
            observed: All that its status depends on beside it.
        """
        known, beside = self._settled.get(adapter.uid, (None, None))
        return known is adapter and beside == observed

    def settle(self, adapter: LoRAAdapter, observed: object) -> None:
        """Remember that an adapter's status says all; see :meth:`is_settled`."""
        self._settled[adapter.uid] = adapter, observed

    def next_report(
        self, adapter: LoRAAdapter, status: LoRAAdapterStatus, now: dt.datetime
    ) -> ReportAdapter | dt.datetime | None:
        """Return the report to write now, or when it is due; None when the adapter's status says all.

        Args:
            adapter: The adapter, with the status that it has.
            status: The status that it should have.
            now: The time.
        """
        if status == adapter.status:
            return None
        due = self._reported.get(adapter.uid, now - REPORT_PERIOD) + REPORT_PERIOD
        if now < due:
            return due
        if self._tokens.available < 1:
            return now + REPORT_PERIOD
        self._tokens.take()
        self._reported[adapter.uid] = now
        return ReportAdapter(adapter, status)

    def forget(self, adapter: LoRAAdapter) -> None:
        """Drop what is kept of an adapter that is gone."""
        self._reported.pop(adapter.uid, None)
        self._settled.pop(adapter.uid, None)


def _urgent(status: DiffusionModelStatus) -> object:
    """Return what is written at once when it changes. Words are not: while a worker starts they tell its progress."""
    condition = find_condition(status.conditions, ModelConditionType.AVAILABLE)
    return condition and (condition.status, condition.reason, condition.observed_generation)
