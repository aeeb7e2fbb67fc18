"""What the routes of the doors for other programs' clients share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import StreamingResponse

from kubediffusion.api.access.identity import Identity
from kubediffusion.api.dependencies import (
    AppState,
    AppStateDep,
    EncoderDep,
    IdempotencyKey,
    IdentityDep,
    ImagesDep,
    JobServiceDep,
    JsonRoute,
    unless_gone,
)
from kubediffusion.api.doors.common import FieldNames, JobFailedError
from kubediffusion.api.encoding import ImageEncoder
from kubediffusion.api.errors import ApiError, ErrorForm, UnavailableError
from kubediffusion.api.images import ImageReader
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.job_cache.results import JOB_HEADER
from kubediffusion.api.schemas import JobRequest
from kubediffusion.api.service import JobService
from kubediffusion.resources.generation_job import Phase

JSON = "application/json"

GRACE_SECONDS = 10.0
"""How long after its deadline a job is waited for: the operator needs a moment to say that it has ended."""


class DoorRouter(APIRouter):
    """The routes of one door.

    Args:
        prefix: The path that they are below, and nothing else is.
        error_form: The form in which the door's clients read errors; the form of all that fails below the prefix.
        tag: The door's name in the OpenAPI document.
    """

    def __init__(self, prefix: str, error_form: ErrorForm, tag: str) -> None:
        super().__init__(prefix=prefix, route_class=JsonRoute, tags=[tag])
        self.error_form = error_form


@dataclass(frozen=True)
class JobCall:
    """A request that waits for the job that it has made.

    Attributes:
        service: Knows the job.
        job: The job as it was when the request made it.
        identity: Who made it.
        abandons: Whether the job is cancelled when the client goes while it waits: nobody else knows of it.
    """

    service: JobService
    job: CachedJob
    identity: Identity
    abandons: bool

    async def wait(self, seconds: float) -> CachedJob:
        """Return the job once it has finished, or as it is when ``seconds`` have passed.

        Raises:
            TaskNotFoundError: It was deleted meanwhile.
        """
        try:
            return await self.service.wait(self.job, seconds)
        except asyncio.CancelledError:
            # The client is gone, or the server stops.
            self._abandon()
            raise

    async def outcome(self) -> CachedJob:
        """Return the job once it has succeeded; nobody waits for it after its deadline.

        Raises:
            JobFailedError: It ended otherwise.
            UnavailableError: It has not ended by its deadline.
            TaskNotFoundError: It was deleted meanwhile.
        """
        job = await self.wait((self.job.parse().spec.active_deadline_seconds or 0) + GRACE_SECONDS)
        if not job.finished:
            self._abandon()
            raise UnavailableError("The job has not ended in time; try again shortly.")
        if job.phase is not Phase.SUCCEEDED or not job.images:
            raise JobFailedError(job)
        return job

    def _abandon(self) -> None:
        if self.abandons and not self.job.finished:
            self.service.abandon(self.job, self.identity)


@dataclass(frozen=True)
class DoorRequest:
    """A request that ends with images: who asks, and what the response needs."""

    request: Request
    state: AppState
    service: JobService
    images: ImageReader
    encoder: ImageEncoder
    identity: Identity
    idempotency_key: str | None

    async def submit(self, wanted: JobRequest, names: FieldNames) -> JobCall:
        """Create the job.

        Args:
            wanted: What to generate.
            names: How the door's clients call the fields.

        Raises:
            ApiError: It is refused.
        """
        with names.named_in_errors():
            job = await self.service.submit(wanted, self.identity, self.idempotency_key)
        return JobCall(self.service, job, self.identity, abandons=self.idempotency_key is None)

    async def outcome(self, call: JobCall) -> CachedJob:
        """Return the job once it has succeeded, for as long as the client keeps its connection.

        Raises:
            ApiError: As :meth:`JobCall.outcome`, with the job's name in a header; or the client is gone.
        """
        try:
            return await unless_gone(self.request, call.outcome())
        except ApiError as error:
            error.headers[JOB_HEADER] = call.job.name
            raise


async def _door_request(
    request: Request,
    service: JobServiceDep,
    images: ImagesDep,
    encoder: EncoderDep,
    state: AppStateDep,
    identity: IdentityDep,
    idempotency_key: IdempotencyKey = None,
) -> DoorRequest:
    return DoorRequest(request, state, service, images, encoder, identity, idempotency_key)


DoorRequestDep = Annotated[DoorRequest, Depends(_door_request)]


async def streamed(
    document: AsyncGenerator[bytes, None], headers: Mapping[str, str], status: int = 200
) -> StreamingResponse:
    """Build the response of a document with images in it.

    What storage says of the first image decides the status: later it can only break the response off.

    Args:
        document: The pieces of the JSON; the second is the first of an image.
        headers: Headers of the response.
        status: Its status.

    Raises:
        StorageError: Storage is away, or the image is not there.
        CorruptImageError: The first image is not the one that was generated.
        UnavailableError: Storage does not answer, or none is configured.
    """
    begun = [await anext(document), await anext(document)]
    return StreamingResponse(_joined(begun, document), status_code=status, media_type=JSON, headers=headers)


async def _joined(begun: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in begun:
        yield piece
    async for piece in rest:
        yield piece
