"""The Python client: ``Client`` and ``AsyncClient`` generate images, and show and cancel jobs."""

from kubediffusion.client.aio import AsyncClient
from kubediffusion.client.errors import (
    ConflictError,
    CorruptImageError,
    ImageGoneError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    KubeDiffusionError,
    NotFoundError,
    PermissionDeniedError,
    TooManyRequestsError,
    UnavailableError,
    UnreachableError,
    WaitTimeoutError,
)
from kubediffusion.client.handles import AsyncJob
from kubediffusion.client.images import GeneratedImage
from kubediffusion.client.sync import Client, Job

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Client",
    "ConflictError",
    "CorruptImageError",
    "GeneratedImage",
    "ImageGoneError",
    "InvalidRequestError",
    "Job",
    "JobCancelledError",
    "JobFailedError",
    "KubeDiffusionError",
    "NotFoundError",
    "PermissionDeniedError",
    "TooManyRequestsError",
    "UnavailableError",
    "UnreachableError",
    "WaitTimeoutError",
]
