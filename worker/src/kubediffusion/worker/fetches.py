"""Fetches what a job cannot begin without, while the engine computes other jobs: input images and adapters.

One rule for all of them: it is tried again for as long as its source is away, and for minutes where the source
refuses it; a job that waits says so; one whose fetch fails for good fails alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.worker.assignments import Assignment
from kubediffusion.worker.context import WorkerContext
from kubediffusion.worker.engine import Outcome
from kubediffusion.worker.progress_reporter import ProgressReporter
from kubediffusion.worker.refusal_backoff import RefusalBackoff
from kubediffusion.worker.uploads import FIRST_PAUSE, LONGEST_PAUSE, REPORT_AFTER

T = TypeVar("T")

FinishImage = Callable[[Assignment, int, Outcome], None]
"""Takes in the failure of a job's image: see :meth:`.finisher.Finisher.finish_image`."""


@dataclass(frozen=True)
class FailedTry:
    """A try that failed, and is repeated.

    Attributes:
        problem: What the job says while it waits.
        failure: The source refuses it: what the job ends with if it does so for ``refused_seconds``. None where the
            source is away, which passes by itself.
    """

    problem: str
    failure: JobFailure | None = None


@dataclass(frozen=True)
class FetchLog:
    """What the log says of fetches of one kind.

    Attributes:
        logger: Of the module that fetches.
        kind: Plural noun, which also begins the message of a job that fails by a defect: ``inputs``.
        done: Past participle: ``fetched``.
        retry: Message for a try that is repeated.
    """

    logger: logging.Logger
    kind: str
    done: str
    retry: str


class Fetcher:
    """Fetches what jobs need, each in a task of its assignment. Belongs to the event loop.

    Args:
        context: What the parts of the worker share.
        finish_image: Takes in failures.
        progress: Writes that a job waits for a source.
        log: What the log says.
    """

    def __init__(
        self, context: WorkerContext, finish_image: FinishImage, progress: ProgressReporter, log: FetchLog
    ) -> None:
        self._refused_seconds = context.refused_seconds
        self._wake_runner = context.work_available.set
        self._finish_image = finish_image
        self._progress = progress
        self._log = log

    def start(self, assignment: Assignment, fetch: Coroutine[None, None, None]) -> None:
        """Run a fetch beside the engine, and wake the runner once the job has what it needs.

        Args:
            assignment: The job, which fails with the :class:`JobFailure` that the fetch raises. When the job is taken
                away, the fetch is cancelled.
            fetch: Fetches all that the job needs of this kind, and gives it to the assignment.
        """
        task = asyncio.get_running_loop().create_task(self._run(assignment, fetch))
        assignment.tasks.add(task)
        task.add_done_callback(assignment.tasks.discard)

    async def _run(self, assignment: Assignment, fetch: Coroutine[None, None, None]) -> None:
        log = self._log
        try:
            await fetch
        except JobFailure as failure:
            log.logger.warning("a job's %s cannot be used: %s", log.kind, failure.code, extra={"job": assignment.name})
            self._finish_image(assignment, 0, failure)
        except Exception as error:
            # A defect of this worker; the job must end all the same.
            log.logger.exception("a job's %s cannot be %s", log.kind, log.done, extra={"job": assignment.name})
            self._finish_image(assignment, 0, JobFailure(ErrorCode.INTERNAL, f"{log.kind}: {type(error).__name__}"))
        else:
            self._wake_runner()

    async def until_fetched(
        self,
        assignment: Assignment,
        fetch: Callable[[], Awaitable[T]],
        judge: Callable[[Exception], FailedTry],
        **about: str,
    ) -> T:
        """Fetch one thing, and retry for as long as its source is away, and for minutes where it refuses.

        Args:
            assignment: The job that waits for it; it says so after the first second of failed tries.
            fetch: Tries once.
            judge: Says what a failed try means. What it raises ends the tries.
            about: Fields of the log that name it.

        Raises:
            JobFailure: It cannot be used.
        """
        backoff, failing_since = Backoff(FIRST_PAUSE, LONGEST_PAUSE), None
        refusals = RefusalBackoff(self._refused_seconds)
        while True:
            try:
                return await fetch()
            except JobFailure:
                raise
            except Exception as error:
                failed = judge(error)
                if failed.failure is None:
                    pause = backoff.next_pause()
                elif (left := refusals.next_pause()) is not None:
                    pause = left
                else:
                    raise failed.failure from error
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since >= REPORT_AFTER:
                self._progress.report_storage_trouble(assignment, failed.problem)
            self._log.logger.warning(self._log.retry, extra={**about, "pause": pause})
            await asyncio.sleep(pause)
