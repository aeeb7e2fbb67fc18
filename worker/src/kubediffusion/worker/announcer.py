"""What a job's status says before its outcome: that it runs and how far it is, and that storage makes it wait.

None of it is tried twice: the next announcement says more, and the outcome says all.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable

from kubediffusion.worker import reports
from kubediffusion.worker.assignments import Assignment, Assignments, Binding
from kubediffusion.worker.pacing import TICK, Standing, next_due
from kubediffusion.worker.reporter import Build, Reporter, Verdict


class Announcer:
    """Writes progress and trouble, at most one write at a time for a job.

    Args:
        assignments: The jobs.
        reporter: Writes.
        on_lost: Called with an assignment that turned out to be somebody else's.
    """

    def __init__(self, assignments: Assignments, reporter: Reporter, on_lost: Callable[[Assignment], None]) -> None:
        self._assignments = assignments
        self._reporter = reporter
        self._on_lost = on_lost
        self._busy = asyncio.Event()
        self._writes: dict[Binding, asyncio.Task[None]] = {}
        # When progress was written last, and which step it said.
        self._said: dict[Binding, tuple[float, int]] = {}
        self._troubled: set[Binding] = set()

    def wake(self) -> None:
        """Note that a batch has begun."""
        self._busy.set()

    async def run(self) -> None:
        """Announce progress until cancelled; asleep while nothing is computed."""
        while True:
            await self._busy.wait()
            while standings := [self._standing(a) for a in self._assignments if a.computing and not a.closing]:
                now = time.monotonic()
                due = next_due((s for s in standings if s.key not in self._writes), now)
                if due is not None and (assignment := self._assignments.get(due.uid)) is not None:
                    self._said[due] = (now, assignment.progress.step)
                    self._write(assignment, lambda job, a=assignment: reports.running(job, a))  # type: ignore[misc]
                await asyncio.sleep(max(TICK, min(s.due_at for s in standings) - now))
            self._busy.clear()

    def trouble(self, assignment: Assignment, problem: str) -> None:
        """Announce, once, that storage does not take the job's images."""
        binding = assignment.binding
        if binding in self._troubled or binding in self._writes or assignment.closing:
            return
        now = dt.datetime.now(dt.UTC)
        self._troubled.add(binding)
        self._write(
            assignment,
            lambda job: reports.waiting_for_storage(job, assignment, problem, now),
            unsent=lambda: self._troubled.discard(binding),
        )

    def hush(self, assignment: Assignment) -> None:
        """Say nothing more about a job: its outcome follows."""
        binding = assignment.binding
        if write := self._writes.pop(binding, None):
            write.cancel()
        self._said.pop(binding, None)
        self._troubled.discard(binding)

    def _standing(self, assignment: Assignment) -> Standing[Binding]:
        said_at, step = self._said.get(assignment.binding, (None, None))
        return Standing(
            key=assignment.binding,
            began=assignment.spans[0].began,
            step=assignment.progress.step,
            written_at=said_at,
            written_step=step,
        )

    def _write(self, assignment: Assignment, build: Build, unsent: Callable[[], None] = lambda: None) -> None:
        binding = assignment.binding

        async def write() -> None:
            try:
                verdict = await self._reporter.try_once(assignment, build)
            finally:
                if self._writes.get(binding) is task:
                    del self._writes[binding]
            if verdict is Verdict.FENCED:
                self._on_lost(assignment)
            elif verdict is Verdict.UNSENT:
                unsent()

        task = asyncio.get_running_loop().create_task(write())
        self._writes[binding] = task
