"""Workers that were ready and say that they are not: when they count as cut off, when they are given up, in what words.

A worker's readiness follows its contact with the API server. After an outage of that all workers say that they are not
ready, and some seconds later that they are: the time is counted from when this operator first saw it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kubediffusion.operator.workers import ObservedWorker, Pod

CUT_OFF_AFTER = dt.timedelta(seconds=10)
"""How long a worker may say so until the jobs go elsewhere that it has not begun."""

FIRST_READY_AFTER = dt.timedelta(seconds=60)
"""The same of a worker that this operator never saw ready: it may have loaded its model just now, and its node have yet
to ask it."""


@dataclass(frozen=True)
class CutOff:
    """A worker that says that it is not ready.

    Attributes:
        at: When it counts as cut off.
        given_up_at: When it is given up: the jobs go elsewhere that it has begun, and another worker gets its place.
    """

    at: dt.datetime
    given_up_at: dt.datetime


class CutOffs:
    """Remembers which Pods were ready, and since when they are not. A restarted operator counts the time anew."""

    def __init__(self) -> None:
        self._was_ready: set[str] = set()
        self._since: dict[str, dt.datetime] = {}

    def observe(self, pod: Pod, *, busy: bool, now: dt.datetime, longest_end: dt.timedelta) -> CutOff | None:
        """Return when a worker counts as cut off; None while it is ready, or still loads its model.

        Args:
            pod: Its Pod.
            busy: Whether it has jobs, and was ready when it got them.
            now: The time.
            longest_end: How long the Pod may take to end; for as long a worker may finish what it has begun.
        """
        name = pod.metadata.name
        if pod.ready or busy:
            self._was_ready.add(name)
        if not pod.withdrawn:
            self._since.pop(name, None)
            return None
        at = self._since.setdefault(name, now)
        at += CUT_OFF_AFTER if name in self._was_ready else FIRST_READY_AFTER
        return CutOff(at, at + longest_end)

    def forget_others(self, pods: Collection[str]) -> None:
        """Forget all but some Pods."""
        self._was_ready.intersection_update(pods)
        for name in self._since.keys() - set(pods):
            del self._since[name]


def worker_cut_off(pod: str) -> str:
    """Return why a job is taken from a worker that is cut off."""
    return f"worker {pod} is not ready any more, as one that does not hear the API server"


def workers_cut_off(workers: Sequence[ObservedWorker]) -> str:
    """Return the sentence on the workers that are cut off, at least one."""
    first = workers[0]
    message = worker_cut_off(first.pod.metadata.name if first.pod is not None else first.name)
    message += f", and {len(workers) - 1} more" if len(workers) > 1 else ""
    until = first.given_up_at
    return message + (f"; it is replaced at {until:%H:%M:%S} UTC unless it is ready again" if until is not None else "")
