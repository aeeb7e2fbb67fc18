"""Writes reports to the API server until they are accepted, or until the job is known to be another worker's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from enum import StrEnum

from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ForbiddenError, InvalidError, KubernetesError, NotFoundError
from kubediffusion.resources.apiserver.resource import JSON_PATCH
from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus
from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.transitions import TERMINAL
from kubediffusion.worker import reports
from kubediffusion.worker.assignments import Assignment
from kubediffusion.worker.refusal_backoff import LONGEST_PAUSE as LONGEST_REFUSAL_PAUSE
from kubediffusion.worker.refusal_backoff import RefusalBackoff

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

Build = Callable[[GenerationJob], GenerationJobStatus]
"""Returns the status to report, of the job as last seen."""


class Delivery(StrEnum):
    """What became of a report."""

    ACCEPTED = "accepted"
    FENCED = "fenced"
    """The job is no longer this worker's: nothing was changed."""
    UNSENT = "unsent"
    """The API server did not take it; another try may succeed."""


class ReportRefusedError(Exception):
    """The API server refuses a report whose fence holds.

    Attributes:
        code: What the job fails with.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Reporter:
    """Writes the status of jobs.

    Args:
        client: The API server.
        namespace: Namespace of the jobs.
        refused_seconds: How long an outcome that is not permitted is reported again.
        secrets: What no text of a status may hold.
    """

    def __init__(
        self, client: KubernetesClient, namespace: str, refused_seconds: float, secrets: Iterable[str] = ()
    ) -> None:
        self._redactor = Redactor(secrets)
        self._refused_seconds = refused_seconds
        self._jobs = client.generation_jobs
        self._namespace = namespace

    async def deliver(self, assignment: Assignment, build: Build, *, insist: bool = False) -> Delivery:
        """Report an outcome, retrying until the API server has accepted or fenced it.

        Only 403 and 422 count as refusals. Any other error (409, 5xx) or no answer is tried again without end.

        Args:
            assignment: The job and its binding.
            build: Makes the report.
            insist: Retry even when the report is refused.

        Raises:
            ReportRefusedError: The API server refuses the report's content, or has not permitted it for
                ``refused_seconds``.
        """
        backoff, refusals = Backoff(FIRST_PAUSE, LONGEST_PAUSE), RefusalBackoff(self._refused_seconds)
        while True:
            job = assignment.job
            try:
                delivery, problem = await self._try(assignment, build)
            except KubernetesError as error:
                delivery, problem = Delivery.UNSENT, error
            if delivery is not Delivery.UNSENT or problem is None:
                return delivery
            if isinstance(problem, InvalidError) and assignment.job == job and not insist:
                # The report fits what is there, so the fence held and the content did not pass.
                raise ReportRefusedError(ErrorCode.INTERNAL, f"the report was refused: {problem}") from problem
            if isinstance(problem, ForbiddenError | InvalidError):
                pause = refusals.next_pause()
                if pause is None and not insist:
                    message = f"the outcome could not be reported for {self._refused_seconds:.0f} s: {problem.message}"
                    raise ReportRefusedError(ErrorCode.STATUS_REFUSED, message) from problem
                pause = pause or LONGEST_REFUSAL_PAUSE
            else:
                refusals.reset()
                pause = problem.retry_after or backoff.next_pause()
            logger.warning(
                "report not accepted yet, trying again: %s", problem, extra={"job": assignment.name, "pause": pause}
            )
            await asyncio.sleep(pause)

    async def try_once(self, assignment: Assignment, build: Build) -> Delivery:
        """Report what the next report would say as well, in one try."""
        try:
            delivery, _ = await self._try(assignment, build)
        except KubernetesError:
            # The next report says the same, and is tried until it is accepted.
            return Delivery.UNSENT
        return delivery

    async def is_deleted(self, assignment: Assignment) -> bool:
        """Return whether a job is deleted or being deleted, retrying until the API server answers.

        Where reading the job is not permitted for ``refused_seconds``, it is taken as being there.
        """
        backoff, refusals = Backoff(FIRST_PAUSE, LONGEST_PAUSE), RefusalBackoff(self._refused_seconds)
        while True:
            try:
                current = await self._read(assignment)
            except KubernetesError as error:
                logger.warning("cannot read the job, trying again: %s", error, extra={"job": assignment.name})
                refused = isinstance(error, ForbiddenError)
                pause = refusals.next_pause() if refused else error.retry_after or backoff.next_pause()
                if pause is None:
                    return False
                await asyncio.sleep(pause)
            else:
                gone = current is None or current.uid != assignment.binding.uid
                return gone or (current is not None and current.metadata.deletion_timestamp is not None)

    async def _try(self, assignment: Assignment, build: Build) -> tuple[Delivery, KubernetesError | None]:
        """Send a report once; where it is refused, read the job to find out why, and return the refusal too.

        Raises:
            KubernetesError: The API server answered otherwise (409, 5xx) or not at all, to the report or to
                the read. :meth:`deliver` retries these without end.
        """
        job = assignment.job
        after = reports.redacted(build(job), self._redactor)
        patch = reports.fenced_patch(job, after)
        try:
            answer = await self._jobs.patch(
                self._namespace, job.name, patch, content_type=JSON_PATCH, subresource="status"
            )
        except NotFoundError:
            return Delivery.FENCED, None
        except (InvalidError, ForbiddenError) as error:
            current = await self._read(assignment)
            delivery = _delivery(assignment, current, after)
            if delivery is Delivery.UNSENT and current is not None:
                assignment.update_job(current)
            return delivery, error
        assignment.update_job(answer)
        return Delivery.ACCEPTED, None

    async def _read(self, assignment: Assignment) -> GenerationJob | None:
        try:
            return await self._jobs.get(self._namespace, assignment.name)
        except NotFoundError:
            return None


def _delivery(assignment: Assignment, current: GenerationJob | None, after: GenerationJobStatus) -> Delivery:
    """Judge a refused report by the job as it is now; UNSENT when the job is still this worker's."""
    if current is None or current.uid != assignment.binding.uid:
        return Delivery.FENCED
    status = current.status
    if (status.worker, status.attempt) != (assignment.job.status.worker, assignment.binding.attempt):
        return Delivery.FENCED
    if status.phase in TERMINAL:
        # An earlier try of this very report may have been accepted, and only its answer lost.
        same = (status.phase, status.completion_time) == (after.phase, after.completion_time)
        return Delivery.ACCEPTED if same else Delivery.FENCED
    return Delivery.UNSENT
