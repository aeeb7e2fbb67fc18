"""Writes what a job's status says before its outcome: that it runs, its progress, and that storage makes it wait.

No write is retried: the next one says more, and the outcome says all.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable

from kubediffusion.resources.backoff import pause_after
from kubediffusion.worker import reports
from kubediffusion.worker.assignments import Assignment, Assignments, Binding
from kubediffusion.worker.pacing import JOB_PERIOD, LONGEST_PERIOD, WORKER_PERIOD, ProgressState, next_due
from kubediffusion.worker.reporter import Build, Delivery, Reporter


class ProgressReporter:
    """Writes the progress of jobs, and their trouble with storage; at most one write at a time for a job.

    Args:
        assignments: The jobs of this worker.
        reporter: Writes their status.
        on_fenced: Called with an assignment that is no longer this worker's.
    """

    def __init__(self, assignments: Assignments, reporter: Reporter, on_fenced: Callable[[Assignment], None]) -> None:
        self._assignments = assignments
        self._reporter = reporter
        self._on_fenced = on_fenced
        self._computing = asyncio.Event()
        self._writes: dict[Binding, asyncio.Task[None]] = {}
        # When progress was last written (monotonic seconds), and the step that was written.
        self._written: dict[Binding, tuple[float, int]] = {}
        self._told_of_storage: set[Binding] = set()
        # Writes in a row that were not accepted: the API server is away, or a policy denies them.
        self._unsent: dict[Binding, int] = {}

    def batch_started(self) -> None:
        """Start to write progress: the engine was given images."""
        self._computing.set()

    async def run(self) -> None:
        """Write progress until cancelled; sleep while the engine has no images."""
        while True:
            await self._computing.wait()
            while states := [self._state(a) for a in self._assignments if a.computing and not a.finishing]:
                now = time.monotonic()
                due = next_due((s for s in states if s.key not in self._writes), now)
                if due is not None and (assignment := self._assignments.get(due.uid)) is not None:
                    self._written[due] = (now, assignment.progress.step)
                    self._write(assignment, lambda job, a=assignment: reports.running(job, a))  # type: ignore[misc]
                await asyncio.sleep(max(WORKER_PERIOD, min(s.due_at for s in states) - now))
            self._computing.clear()

    def report_storage_trouble(self, assignment: Assignment, problem: str) -> None:
        """Write, once, that storage does not take the job's images.

        Args:
            assignment: The job that waits.
            problem: What storage answered, for people.
        """
        binding = assignment.binding
        if binding in self._told_of_storage or binding in self._writes or assignment.finishing:
            return
        now = dt.datetime.now(dt.UTC)
        self._told_of_storage.add(binding)
        self._write(
            assignment,
            lambda job: reports.waiting_for_storage(job, assignment, problem, now),
            on_unsent=lambda: self._told_of_storage.discard(binding),
        )

    def stop(self, assignment: Assignment) -> None:
        """Write nothing more about a job, and cancel a write under way: its outcome follows."""
        binding = assignment.binding
        if write := self._writes.pop(binding, None):
            write.cancel()
        self._written.pop(binding, None)
        self._unsent.pop(binding, None)
        self._told_of_storage.discard(binding)

    def _state(self, assignment: Assignment) -> ProgressState[Binding]:
        written_at, step = self._written.get(assignment.binding, (None, None))
        return ProgressState(
            key=assignment.binding,
            started_at=assignment.spans[0].began,
            step=assignment.progress.step,
            written_at=written_at,
            written_step=step,
            period=pause_after(self._unsent.get(assignment.binding, 0) + 1, JOB_PERIOD, LONGEST_PERIOD),
        )

    def _write(self, assignment: Assignment, build: Build, on_unsent: Callable[[], None] = lambda: None) -> None:
        binding = assignment.binding

        async def write() -> None:
            try:
                delivery = await self._reporter.try_once(assignment, build)
            finally:
                if self._writes.get(binding) is task:
                    del self._writes[binding]
            if delivery is Delivery.FENCED:
                self._on_fenced(assignment)
            elif delivery is Delivery.UNSENT:
                self._unsent[binding] = self._unsent.get(binding, 0) + 1
                on_unsent()
            else:
                self._unsent.pop(binding, None)

        task = asyncio.get_running_loop().create_task(write())
        self._writes[binding] = task
