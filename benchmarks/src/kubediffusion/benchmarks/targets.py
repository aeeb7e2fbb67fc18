"""The numbers that the project wants to reach, held against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kubediffusion.benchmarks.batchjobs import INSTANT
from kubediffusion.benchmarks.throughput import cost

Found = Mapping[str, Any]

RATE = 20
"""Jobs a second that the latency is promised at."""


@dataclass(frozen=True)
class Target:
    """A number to reach.

    Attributes:
        what: What is measured.
        unit: Of the bound.
        bound: What to reach.
        least: Whether the bound is the least that is good, rather than the most.
        measured: Reads the number from what a suite found; None where the run had no such size.
    """

    what: str
    unit: str
    bound: float
    least: bool
    measured: Callable[[Found], float | None]

    def met(self, value: float) -> bool:
        """Return whether a value reaches the bound."""
        return value >= self.bound if self.least else value <= self.bound


def _latency(percentile: str) -> Callable[[Found], float | None]:
    def measured(found: Found) -> float | None:
        return next((1000 * o["completed"][percentile] for o in found["offers"] if o["rate"] == RATE), None)

    return measured


def _over_http(found: Found) -> list[Found]:
    return [burst for burst in found["bursts"] if burst["door"] == "HTTP"]


def _throughput(found: Found) -> float:
    largest = _over_http(found)[-1]
    return float(largest["jobs"] / largest["seconds"])


def _flat(found: Found) -> float:
    bursts = _over_http(found)
    return cost(bursts[-1]) / cost(bursts[0])


def _against_jobs(limits: str) -> Callable[[Found], float | None]:
    def measured(found: Found) -> float | None:
        own, (peer,) = found["burst"], [j for j in found["jobs"] if (j["node"], j["limits"]) == (INSTANT, limits)]
        return float(own["jobs"] / own["seconds"] / (peer["jobs"] / peer["seconds"]))

    return measured


TARGETS: Mapping[str, tuple[Target, ...]] = {
    "latency": (
        Target("request to completed at 20 jobs/s, engine time taken out, p50", "ms", 60, False, _latency("p50")),
        Target("the same, p99", "ms", 200, False, _latency("p99")),
    ),
    "throughput": (
        Target("full life cycles in the largest burst over HTTP", "jobs/s", 100, True, _throughput),
        Target("cost a job, largest burst against smallest", "times", 1.3, False, _flat),
    ),
    "steady": (
        Target("operator's memory", "MiB", 250, False, lambda found: found["processes"]["operator"]["rss"]),
        Target(
            "operator's processor time with nothing to do",
            "% of a core",
            1,
            False,
            lambda found: 100 * found["processes"]["operator"]["cpu"] / found["seconds"],
        ),
    ),
    "polling": (
        Target(
            "polls a second of a pending task, against a bare FastAPI server",
            "times",
            0.9,
            True,
            lambda found: found["polls"]["rate ratio"],
        ),
    ),
    "peers": (
        Target("jobs/s against one batch/v1 Job a request", "times", 25, True, _against_jobs("default")),
        Target("the same, the controller manager's limits lifted", "times", 2.5, True, _against_jobs("lifted")),
    ),
}
"""By suite. Jobs are compared on the instant node: what is left there is Kubernetes' own work for a Job."""
