"""The failures that a job can end with, by code, and the exit code of a worker whose model cannot be loaded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ErrorCode(StrEnum):
    """``status.error.code`` of a failed job."""

    INVALID_SPEC = "InvalidSpec"
    """The model's limits refuse the job; the message names the field."""
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_NOT_AVAILABLE = "ModelNotAvailable"
    PIPELINE_FAILED = "PipelineFailed"
    """The pipeline raised on this job."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The job does not fit the device even when it runs alone."""
    INVALID_INPUT = "InvalidInput"
    """An input is not in storage, is not what its hash says, or is no image that is taken."""
    INVALID_ADAPTER = "InvalidAdapter"
    """An adapter cannot be loaded for the job's model; the message says why."""
    INVALID_IMAGE = "InvalidImage"
    """The pipeline gave pixels that are not numbers."""
    STORAGE_FAILED = "StorageFailed"
    """Storage refused the image for good: the bucket does not exist, or access was denied for minutes."""
    STATUS_REFUSED = "StatusRefused"
    """The API server refused for minutes what was written of the job, for example by a policy of the cluster."""
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    INTERNAL = "Internal"
    """A defect of KubeDiffusion; the worker's log has the traceback."""


# Not frozen: contextlib and others set an exception's traceback as it passes.
@dataclass(unsafe_hash=True)
class JobFailure(Exception):  # noqa: N818 - it is an outcome of a job that travels as an exception, not a defect
    """One job cannot be completed; its batch mates are not concerned.

    Attributes:
        code: Value of ``status.error.code``.
        message: For people: the field or part, the reason, the remedy.
    """

    code: ErrorCode
    message: str

    def __str__(self) -> str:
        """Join code and message in one line."""
        return f"{self.code}: {self.message}"


BAD_MODEL_EXIT_CODE = 78
"""Exit code of a worker whose model cannot be loaded, whatever the machine (EX_CONFIG of sysexits.h)."""

REFUSED_MODEL_EXIT_CODE = 69
"""Exit code of a worker that the Hugging Face Hub or storage refuses the model (EX_UNAVAILABLE of sysexits.h).

They may be mistaken for a moment: another worker has to find the same before jobs fail."""
