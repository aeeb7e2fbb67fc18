"""Every way in which a request can fail, typed: which field it is about, the reason, and what helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubediffusion.client.views import JobView


class KubeDiffusionError(Exception):
    """A request failed.

    Attributes:
        reason: Why, in the words of whoever refused it.
        field: The field of the job that is at fault, in snake_case; None where no single one is.
        remedy: What helps; empty where nobody knows.
        status: HTTP status of the answer; None where there was none.
        retry_after: Seconds after which the same request may succeed; None where nobody said.
    """

    default_remedy = ""

    def __init__(
        self,
        reason: str,
        *,
        field: str | None = None,
        remedy: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.reason = reason
        self.field = field
        self.remedy = self.default_remedy if remedy is None else remedy
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class FieldProblem:
    """One thing that is wrong with a request.

    Attributes:
        field: The field, in snake_case, of a nested one with dots; None where it is the whole request.
        reason: What is wrong with it.
    """

    field: str | None
    reason: str


class InvalidRequestError(KubeDiffusionError):
    """The request is refused as it is, and would be refused again.

    Attributes:
        problems: All that is wrong with it; ``field`` and ``reason`` are those of the first.
    """

    default_remedy = "`kubediffusion models` shows what each model takes"

    def __init__(
        self, problems: Sequence[FieldProblem], *, remedy: str | None = None, status: int | None = None
    ) -> None:
        first = problems[0]
        super().__init__(first.reason, field=first.field, remedy=remedy, status=status)
        self.problems = tuple(problems)


class PermissionDeniedError(KubeDiffusionError):
    """The server asks for credentials, or does not let these do it."""

    default_remedy = "give the API key in KUBEDIFFUSION_API_KEY"


class NotFoundError(KubeDiffusionError):
    """There is no such job, model or image."""

    default_remedy = "`kubediffusion list` shows the jobs, `kubediffusion models` the models"


class ConflictError(KubeDiffusionError):
    """The state of the job does not allow it, for example to cancel one that has finished."""


class ImageGoneError(KubeDiffusionError):
    """The job has been finished, and its image has been deleted from storage."""

    default_remedy = "`kubediffusion again JOB` draws it once more"


class TooManyRequestsError(KubeDiffusionError):
    """The server is over a limit, and stayed so for as long as it was asked again."""

    default_remedy = "try again later, or ask whoever runs the server for more"


class UnavailableError(KubeDiffusionError):
    """The server, or a part that it needs, is away, and stayed so for as long as it was asked again."""

    default_remedy = "try again later"


class UnreachableError(UnavailableError):
    """Nobody answers at the server's address."""

    default_remedy = "is the address right? --server or KUBEDIFFUSION_SERVER names another"


class CorruptImageError(KubeDiffusionError):
    """The bytes that arrived are not those whose hash the job names."""

    default_remedy = "fetch it again; if it stays so, the image in storage has been changed"


class WaitTimeoutError(KubeDiffusionError):
    """The job has not finished in the time that was given.

    Attributes:
        job: The job as it stands.
    """

    default_remedy = "`kubediffusion explain JOB` says why it takes long"

    def __init__(self, job: JobView, seconds: float) -> None:
        super().__init__(f"job {job.name} has not finished after {seconds:g} s: it is {job.phase}")
        self.job = job


class JobFailedError(KubeDiffusionError):
    """The job has failed.

    Attributes:
        job: The job.
        code: One of the documented codes, for programs.
    """

    default_remedy = ""

    def __init__(self, job: JobView) -> None:
        self.code = job.error.code if job.error else "Failed"
        message = job.error.message if job.error else "no reason was given"
        super().__init__(f"job {job.name} failed: {message} ({self.code})")
        self.job = job


class JobCancelledError(KubeDiffusionError):
    """The job has been cancelled.

    Attributes:
        job: The job.
    """

    def __init__(self, job: JobView) -> None:
        super().__init__(f"job {job.name} has been cancelled")
        self.job = job
