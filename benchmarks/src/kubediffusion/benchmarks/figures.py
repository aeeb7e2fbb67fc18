"""Percentiles and medians: how many measurements become one figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PERCENTILES = (50, 90, 99)


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that ``percent`` percent of the values do not exceed (nearest rank).

    Raises:
        ValueError: There are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("there is no percentile of nothing")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p90 and p99."""
    return {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}


def median(runs: Sequence[Any]) -> Any:
    """Return the median of several runs of equal shape, figure by figure, however deep in mappings a figure is.

    A key that is missing in a run counts as 0 there: a request that was not made. What is no number is the first run's.
    """
    first = runs[0]
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for run in runs for key in run)
        return {key: median([run.get(key, 0) for run in runs]) for key in keys}
    if isinstance(first, int | float):
        return statistics.median(runs)
    return first
