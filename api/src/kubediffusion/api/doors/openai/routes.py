"""OpenAI's images API: one request that ends with the images, as its clients make it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

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
    Rated,
    unless_gone,
)
from kubediffusion.api.doors.openai.schemas import OpenAIErrorBody, OpenAIImages
from kubediffusion.api.doors.openai.translate import (
    FIELD_NAMES,
    ImageGenerationRequest,
    document_parts,
    document_with_urls,
    error_event,
    event_parts,
    job_request,
    openai_error,
)
from kubediffusion.api.doors.router import DoorRouter, JobCall, streamed
from kubediffusion.api.encoding import EncodedImages, Encoding
from kubediffusion.api.errors import ApiError, from_storage
from kubediffusion.api.job_cache.results import JOB_HEADER, warning_headers
from kubediffusion.api.routes.responses import Responses, errors_in_form
from kubediffusion.resources.storage import StorageError

EVENTS = "text/event-stream"

SILENT_SECONDS = 10.0
"""How long a stream says nothing; proxies and clients take a longer silence for a broken connection."""

_ERRORS = {
    400: "The request is not valid.",
    401: "An API key is needed, or it is not valid.",
    404: "There is no such model.",
    500: "The job failed; `code` says how.",
    504: "The job did not end in time.",
}
"""What statuses mean here."""

router = DoorRouter("/v1/images", openai_error, "openai")


def _errors(*statuses: int) -> Responses:
    return errors_in_form(OpenAIErrorBody, _ERRORS, statuses)


@router.post(
    "/generations",
    dependencies=[Rated],
    summary="Generate images, as OpenAI's clients ask for them",
    response_model=OpenAIImages,
    responses={
        200: {"content": {EVENTS: {"schema": {"type": "string"}}}, "description": "The images; events with `stream`."},
        **_errors(400, 404, 413, 429, 500, 502, 503, 504),
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
    with FIELD_NAMES.named_in_errors():
        job = await service.submit(wanted, client, key_name, idempotency_key)
    call = JobCall(service, job, abandons=idempotency_key is None)
    encoded = EncodedImages(images, encoder, body.encoding)
    headers = {JOB_HEADER: job.name}
    if body.stream:
        headers["Cache-Control"] = "no-store"
        return StreamingResponse(_events(call, encoded, body.encoding), media_type=EVENTS, headers=headers)
    try:
        done = await unless_gone(request, call.outcome())
    except ApiError as error:
        error.headers.update(headers)
        raise
    headers |= warning_headers(done)
    if body.as_url:
        urls = [await images.url(done, image, state.settings.presign_seconds) for image in done.images]
        return JSONResponse(document_with_urls(int(time.time()), done.images, urls), headers=headers)
    parts = document_parts(int(time.time()), done.images, body.encoding.format)
    return await streamed(encoded.document(done, parts), headers)


async def _events(call: JobCall, encoded: EncodedImages, encoding: Encoding) -> AsyncIterator[bytes]:
    """Iterate over the events of a stream: one for each image, or the error."""
    outcome = asyncio.ensure_future(call.outcome())
    begun = False
    try:
        # At once, so that the client has its headers and knows the job's name.
        yield b": accepted\n\n"
        while not (await asyncio.wait({outcome}, timeout=SILENT_SECONDS))[0]:
            yield b": waiting\n\n"
        job = outcome.result()
        for image in job.images:
            before, after = event_parts(int(time.time()), image, encoding.format)
            async with aclosing(encoded.base64(job, image)) as pieces:
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
