"""OpenAI's images API: one request that ends with the images, as its clients make it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from kubediffusion.api.dependencies import (
    AppStateDep,
    ClientDep,
    EncoderDep,
    IdempotencyKey,
    ImagesDep,
    JobServiceDep,
    KeyNameDep,
    unless_gone,
)
from kubediffusion.api.encoding import ImageEncoder
from kubediffusion.api.errors import (
    ApiError,
    InvalidRequestError,
    UnavailableError,
    from_storage,
)
from kubediffusion.api.images import ImageReader, WholeBody, base64_pieces
from kubediffusion.api.job_cache.records import CachedJob, StoredImage
from kubediffusion.api.job_cache.results import JOB_HEADER, warning_headers
from kubediffusion.api.openai_images import (
    ImageGenerationRequest,
    JobFailedError,
    OutputFormat,
    document_parts,
    document_with_urls,
    error_event,
    event_parts,
    in_openai_words,
    job_request,
    openai_error,
)
from kubediffusion.api.openai_schemas import OpenAIImages
from kubediffusion.api.routes.doors import DoorRouter
from kubediffusion.api.routes.responses import openai_errors
from kubediffusion.api.service import JobService
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.storage import StorageError

JSON = "application/json"
EVENTS = "text/event-stream"

SILENT_SECONDS = 10.0
"""How long a stream says nothing; proxies and clients take a longer silence for a broken connection."""

router = DoorRouter("/v1/images", openai_error, "openai")


@router.post(
    "/generations",
    summary="Generate images, as OpenAI's clients ask for them",
    response_model=OpenAIImages,
    responses={
        200: {"content": {EVENTS: {"schema": {"type": "string"}}}, "description": "The images; events with `stream`."},
        **openai_errors(400, 404, 413, 429, 500, 502, 503, 504),
    },
)
async def generate_images(
    request: Request,
    body: ImageGenerationRequest,
    service: JobServiceDep,
    images: ImagesDep,
    encoder: EncoderDep,
    state: AppStateDep,
    client: ClientDep,
    key_name: KeyNameDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answer with the images once they are there.

    The job is an ordinary one, whose name is in the header `X-KubeDiffusion-Job`. A client that hangs up cancels it,
    unless it sent an `Idempotency-Key`, by which it can ask again.
    """
    wanted = job_request(body, state.settings.openai_deadline_seconds)
    try:
        job = await service.submit(wanted, client, key_name, idempotency_key)
    except InvalidRequestError as error:
        raise in_openai_words(error) from None
    call = _Call(job, body, service, images, encoder, abandons=idempotency_key is None)
    # The job ends by its deadline; the operator needs a moment to say so.
    seconds = (job.parse().spec.active_deadline_seconds or 0) + SILENT_SECONDS
    headers = {JOB_HEADER: job.name}
    if body.stream:
        headers["Cache-Control"] = "no-store"
        return StreamingResponse(call.events(seconds), media_type=EVENTS, headers=headers)
    try:
        done = await unless_gone(request, call.outcome(seconds))
    except ApiError as error:
        error.headers.update(headers)
        raise
    headers |= warning_headers(done)
    if body.as_url:
        urls = [await images.url(done, image, state.settings.presign_seconds) for image in done.images]
        return JSONResponse(document_with_urls(int(time.time()), done.images, urls), headers=headers)
    document = call.document(done)
    # What storage says of the first image decides the status: later it can only break the response off.
    begun = [await anext(document), await anext(document)]
    return StreamingResponse(_joined(begun, document), media_type=JSON, headers=headers)


@dataclass(frozen=True)
class _Call:
    """One request and its job; ``abandons`` says whether the job ends with the request."""

    job: CachedJob
    body: ImageGenerationRequest
    service: JobService
    images: ImageReader
    encoder: ImageEncoder
    abandons: bool

    async def outcome(self, seconds: float) -> CachedJob:
        """Return the job once it has succeeded.

        Raises:
            JobFailedError: It ended otherwise.
            UnavailableError: It has not ended after so many seconds.
        """
        job = self.job
        try:
            job = await self.service.wait(job, seconds)
        finally:
            # Also when this is cancelled, as the client is gone or the server stops.
            if not job.finished and self.abandons:
                self.service.abandon(job)
        if not job.finished:
            raise UnavailableError("The job has not ended in time; try again shortly.")
        if job.phase is not Phase.SUCCEEDED or not job.images:
            raise JobFailedError(job)
        return job

    async def document(self, job: CachedJob) -> AsyncGenerator[bytes, None]:
        """Iterate over the response with the images in it."""
        first, *parts = document_parts(int(time.time()), job.images, self.body.encoding)
        yield first
        for image, after in zip(job.images, parts, strict=True):
            async with aclosing(self._base64(job, image)) as pieces:
                async for piece in pieces:
                    yield piece
            yield after

    async def events(self, seconds: float) -> AsyncIterator[bytes]:
        """Iterate over the events of a stream: one for each image, or the error."""
        outcome = asyncio.ensure_future(self.outcome(seconds))
        begun = False
        try:
            # At once, so that the client has its headers and knows the job's name.
            yield b": accepted\n\n"
            while not (await asyncio.wait({outcome}, timeout=SILENT_SECONDS))[0]:
                yield b": waiting\n\n"
            job = outcome.result()
            for image in job.images:
                before, after = event_parts(int(time.time()), image, self.body.encoding)
                async with aclosing(self._base64(job, image)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield before + piece
                        before = b""
                yield after
                begun = False
        except (ApiError, StorageError) as error:
            # In the midst of an event no other can begin: the response breaks off.
            if begun:
                raise
            yield error_event(error if isinstance(error, ApiError) else from_storage(error))
        finally:
            outcome.cancel()

    async def _base64(self, job: CachedJob, image: StoredImage) -> AsyncGenerator[bytes, None]:
        body = await self.images.open(job, image)
        try:
            if self.body.encoding is OutputFormat.PNG:
                async for piece in base64_pieces(body):
                    yield piece
                return
            quality = 100 if self.body.output_compression is None else self.body.output_compression
            async with self.encoder.encoded(body, self.body.encoding, quality) as data:
                async for piece in base64_pieces(WholeBody(data)):
                    yield piece
        finally:
            body.close()


async def _joined(begun: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in begun:
        yield piece
    async for piece in rest:
        yield piece
