"""How the command line ends: one number a kind of outcome, for scripts."""

from __future__ import annotations

from enum import IntEnum

from kubediffusion.client import errors


class ExitCode(IntEnum):
    """The exit codes, as docs/client.md has them."""

    DONE = 0
    """What was asked for is done."""
    FAILED = 1
    """The job failed, or something that has no number of its own."""
    REFUSED = 2
    """The command line or a field of the job is wrong; the same would be refused again."""
    NOT_FOUND = 3
    """There is no such job or model."""
    DENIED = 4
    """Credentials are missing or not enough."""
    UNAVAILABLE = 5
    """The server is away or over a limit, and stayed so for as long as it was asked again."""
    TIMEOUT = 6
    """The job has not finished in the time that was given."""
    CANCELLED = 7
    """Somebody cancelled the job."""
    CONFLICT = 8
    """The job has finished, and cannot be cancelled."""
    IMAGE_LOST = 9
    """The image is not in storage any more, or is not the one that was generated."""
    INTERRUPTED = 130
    """Ctrl-C; what was started has been cancelled."""
    TERMINATED = 143
    """SIGTERM; the same."""


_CODES: tuple[tuple[type[errors.KubeDiffusionError], ExitCode], ...] = (
    (errors.InvalidRequestError, ExitCode.REFUSED),
    (errors.NotFoundError, ExitCode.NOT_FOUND),
    (errors.PermissionDeniedError, ExitCode.DENIED),
    (errors.UnavailableError, ExitCode.UNAVAILABLE),
    (errors.TooManyRequestsError, ExitCode.UNAVAILABLE),
    (errors.WaitTimeoutError, ExitCode.TIMEOUT),
    (errors.JobCancelledError, ExitCode.CANCELLED),
    (errors.ConflictError, ExitCode.CONFLICT),
    (errors.ImageGoneError, ExitCode.IMAGE_LOST),
    (errors.CorruptImageError, ExitCode.IMAGE_LOST),
)


def exit_code_of(error: errors.KubeDiffusionError) -> ExitCode:
    """Return the exit code of an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)
