"""OpenAI's images API: one request that ends with the images, as its clients make it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.responses import JSONResponse, Response, StreamingResponse

from kubediffusion.api.dependencies import ImagesRequest, InputsDep, Rated
from kubediffusion.api.doors.common import DO_NOT_RETRY
from kubediffusion.api.doors.openai import edits
from kubediffusion.api.doors.openai.schemas import OpenAIErrorBody, OpenAIImages
from kubediffusion.api.doors.openai.translate import (
    COMPLETED,
    FIELD_NAMES,
    ImageGenerationRequest,
    OpenAIRequest,
    document_parts,
    document_with_urls,
    error_event,
    event_parts,
    job_request,
    openai_error,
)
from kubediffusion.api.doors.router import DoorRequest, DoorRequestDep, DoorRouter, JobCall, streamed
from kubediffusion.api.encoding import EncodedImages, Encoding
from kubediffusion.api.errors import ApiError, InvalidRequestError, NotOfferedError, from_storage, problem
from kubediffusion.api.forms import MEDIA_TYPE, Form, read_form
from kubediffusion.api.input_schemas import InputImage
from kubediffusion.api.inputs import UploadPlace
from kubediffusion.api.job_cache.results import JOB_HEADER, warning_headers
from kubediffusion.api.routes.responses import Responses, errors_in_form, request_body
from kubediffusion.api.schemas import JobRequest
from kubediffusion.resources.generation_job import InputRole
from kubediffusion.resources.storage import StorageError

EVENTS = "text/event-stream"

SILENT_SECONDS = 10.0
"""How long a stream says nothing; proxies and clients take a longer silence for a broken connection."""

_ERRORS = {
    400: "The request is not valid.",
    401: "An API key is needed, or it is not valid.",
    404: "There is no such model.",
    500: "The job failed; `code` says how.",
    501: "This server does not have it; `message` says what to do instead.",
    504: "The job did not end in time.",
}
"""What statuses mean here."""

router = DoorRouter("/v1/images", openai_error, "openai")


def _errors(*statuses: int) -> Responses:
    return errors_in_form(OpenAIErrorBody, _ERRORS, statuses)


_RESPONSES: Responses = {
    200: {"content": {EVENTS: {"schema": {"type": "string"}}}, "description": "The images; events with `stream`."},
    **_errors(400, 404, 413, 429, 500, 502, 503, 504),
}


@router.post(
    "/generations",
    dependencies=[Rated],
    summary="Generate images, as OpenAI's clients ask for them",
    response_model=OpenAIImages,
    responses=_RESPONSES,
)
async def generate_images(body: ImageGenerationRequest, asked: DoorRequestDep) -> Response:
    """Answer with the images once they are there.

    The job is an ordinary one, whose name is in the header `X-KubeDiffusion-Job`. A client that hangs up cancels it,
    unless it sent an `Idempotency-Key`, by which it can ask again.
    """
    wanted = job_request(body, asked.state.settings.openai_deadline_seconds)
    return await _drawn(asked, await asked.submit(wanted, FIELD_NAMES), body, COMPLETED)


@router.post(
    "/edits",
    dependencies=[Rated],
    summary="Make images of an image, as OpenAI's clients ask for them",
    response_model=OpenAIImages,
    responses=_RESPONSES,
    openapi_extra=request_body(
        edits.ImageEditRequest, MEDIA_TYPE, {"image": "The image: a PNG, JPEG or WebP."},
        {"mask": "Edited is where it is fully transparent; all of the image where there is none."},
    ),
)  # fmt: skip
async def edit_image(asked: DoorRequestDep, inputs: InputsDep) -> Response:
    """Answer with the images once they are there, as `generations` does.

    The image, and a mask, are stored as `POST /v1/inputs` stores them.
    """
    # The images are in memory for as long as the place is taken, and not while the job runs.
    with inputs.place(asked.identity) as place:
        wanted, body = await _stored(await read_form(ImagesRequest.of(asked.request), place), asked, place)
    return await _drawn(asked, await asked.submit(wanted, edits.FIELD_NAMES), body, edits.COMPLETED)


@router.post("/variations", summary="Refused: no model here does it", responses=_errors(501))
async def vary_image() -> None:
    """Say what to do instead."""
    raise NotOfferedError(
        "The models here make images of a prompt, or of an image and a prompt, and a variation has none. Send the "
        "image to POST /v1/images/edits, with what it shows as prompt; strength says how much may change.",
        DO_NOT_RETRY,
    )


async def _stored(form: Form, asked: DoorRequest, place: UploadPlace) -> tuple[JobRequest, edits.ImageEditRequest]:
    """Store the images of a form."""
    body, image, mask = edits.edit_of(form)
    del form
    # What is refused is refused before anything is stored.
    wanted = job_request(body, asked.state.settings.openai_deadline_seconds)
    first = await place.store(image, field="image")
    named = [InputImage.model_validate({"role": InputRole.IMAGE, "id": first.id})]
    if mask is not None:
        stored = await place.store(mask, field="mask", change=edits.edited)
        if (stored.width, stored.height) != (first.width, first.height):
            sizes = f"{first.width}x{first.height}, and it is {stored.width}x{stored.height}"
            raise InvalidRequestError([problem("mask", f"It must have the size of the image, {sizes}")])
        named.append(InputImage.model_validate({"role": InputRole.MASK, "id": stored.id}))
    return wanted.model_copy(update={"inputs": named}), body


async def _drawn(asked: DoorRequest, call: JobCall, body: OpenAIRequest, completed: str) -> Response:
    """Build the response once the job's images are there, or the stream at whose end they are.

    Args:
        asked: The request.
        call: Waits for its job.
        body: How the images are wanted.
        completed: The event that carries an image.
    """
    encoded = EncodedImages(asked.images, asked.encoder, body.encoding)
    headers = {JOB_HEADER: call.job.name}
    if body.stream:
        headers["Cache-Control"] = "no-store"
        events = _events(call, encoded, body.encoding, completed)
        return StreamingResponse(events, media_type=EVENTS, headers=headers)
    done = await asked.outcome(call)
    headers |= warning_headers(done)
    if body.as_url:
        seconds = asked.state.settings.presign_seconds
        urls = [await asked.images.url(done, image, seconds) for image in done.images]
        return JSONResponse(document_with_urls(int(time.time()), done.images, urls), headers=headers)
    parts = document_parts(int(time.time()), done.images, body.encoding.format)
    return await streamed(encoded.document(done, parts), headers)


async def _events(call: JobCall, encoded: EncodedImages, encoding: Encoding, completed: str) -> AsyncIterator[bytes]:
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
            before, after = event_parts(completed, int(time.time()), image, encoding.format)
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
