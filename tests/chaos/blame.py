"""The laws of who pays for a fault: nobody but who caused it. Independent of the parts, as the checker is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean

from chaos.evidence import Evidence
from chaos.picture import POISONED_EXIT_CODE
from chaos.violation import Violation, phase, status

MOST_RATIO = 1.2
"""So many times as long may jobs take on average while a fault strikes another namespace."""


def only_the_guilty_fail(evidence: Evidence) -> Iterator[Violation]:
    """A job whose worker exits with it fails in the end; no other job spends a retry for that worker's exit."""
    for versions in evidence.jobs.values():
        last = versions[-1]
        if last.name in evidence.guilty:
            if phase(last) == "Succeeded":
                yield Violation("only the guilty fail", last.name, "its worker exits with it, and it succeeded")
            continue
        for before, after in pairwise(versions):
            spent = status(after).get("retries", 0) > status(before).get("retries", 0)
            worker = status(before).get("worker")
            if spent and not after.gap and _was_poisoned(evidence, worker):
                how = f"a retry was spent at {after.revision} for {worker}, which exited with another's job"
                yield Violation("only the guilty fail", last.name, how)


def _was_poisoned(evidence: Evidence, worker: str | None) -> bool:
    """Return whether a worker's process has exited as a poisonous job makes it."""
    return any(
        container.get("state", {}).get("terminated", {}).get("exitCode") == POISONED_EXIT_CODE
        for pod in evidence.pods.get(worker or "", ())
        for container in status(pod).get("containerStatuses", ())
    )


def others_end_as_fast(evidence: Evidence) -> Iterator[Violation]:
    """Jobs end as fast beside another namespace's fault as without it."""
    for pace in evidence.paces:
        if pace.ratio > MOST_RATIO:
            means = f"{fmean(pace.beside):.2f} s a job instead of {fmean(pace.without):.2f}"
            yield Violation("others end as fast", pace.fault, f"{means}, {pace.ratio:.2f} times as long")
