"""AUTOMATIC1111's web UI API: one request that ends with the images, and what clients ask beside it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Body, Query
from starlette.responses import Response

from kubediffusion.api.dependencies import (
    AppStateDep,
    IdentityDep,
    ImagesRequest,
    InputsDep,
    PreviewsDep,
    Rated,
)
from kubediffusion.api.doors.a1111.img2img import Img2ImgRequest, image_bytes, kept, painted_anew, parse_request
from kubediffusion.api.doors.a1111.schemas import (
    A1111ErrorBody,
    A1111Images,
    A1111Lora,
    A1111Model,
    A1111Options,
    A1111Progress,
    A1111Sampler,
    A1111Scheduler,
    A1111State,
)
from kubediffusion.api.doors.a1111.translate import (
    FIELD_NAMES,
    Txt2ImgRequest,
    a1111_error,
    info,
    infotexts,
    job_request,
    lora_view,
    model_view,
    samplers,
)
from kubediffusion.api.doors.common import around_images
from kubediffusion.api.doors.router import JSON, DoorRequest, DoorRequestDep, DoorRouter, streamed
from kubediffusion.api.encoding import EncodedImages, Encoding
from kubediffusion.api.errors import NotOfferedError, TooManyRequestsError
from kubediffusion.api.input_schemas import InputImage
from kubediffusion.api.inputs import Change, UploadPlace
from kubediffusion.api.job_cache.results import JOB_HEADER, warning_headers
from kubediffusion.api.routes.responses import Responses, errors_in_form, request_body
from kubediffusion.api.schemas import JobRequest
from kubediffusion.resources.generation_job import InputRole

_ERRORS = {
    400: "The request is not valid.",
    401: "An API key is needed, or it is not valid.",
    404: "There is no such model.",
    500: "The job failed; `error` says how.",
    501: "This server does not have it; `detail` says what to do instead.",
    504: "The job did not end in time.",
}
"""What statuses mean here."""

router = DoorRouter("/sdapi/v1", a1111_error, "a1111")


def _errors(*statuses: int) -> Responses:
    return errors_in_form(A1111ErrorBody, _ERRORS, statuses)


@dataclass(frozen=True)
class _Echo:
    """What a response says of its request.

    Attributes:
        parameters: The request as it was understood.
        batch_size: As the client asked for it.
        warnings: What had no effect.
    """

    parameters: Mapping[str, Any]
    batch_size: int
    warnings: Sequence[str]

    @classmethod
    def of(cls, body: Txt2ImgRequest) -> _Echo:
        return cls(body.understood(), body.batch_size, body.warnings)


def _wanted(body: Txt2ImgRequest, asked: DoorRequest) -> JobRequest:
    """Build the request of the job.

    Raises:
        InvalidRequestError: A field has a value that cannot be had.
    """
    return job_request(body, asked.state.models.find(body.checkpoint), asked.state.settings.openai_deadline_seconds)


async def _drawn(asked: DoorRequest, wanted: JobRequest, echo: _Echo) -> Response:
    """Create the job, and build the response once its images are there."""
    call = await asked.submit(wanted, FIELD_NAMES)
    done = await asked.outcome(call)
    whole = done.parse()
    texts = infotexts(whole)
    fields = {"parameters": echo.parameters, "info": info(whole, texts, echo.batch_size)}
    document = EncodedImages(asked.images, asked.encoder, Encoding(), texts).document(
        done, around_images(fields, "images", len(done.images))
    )
    return await streamed(document, {JOB_HEADER: done.name} | warning_headers(done, echo.warnings))


@router.post(
    "/txt2img",
    dependencies=[Rated],
    summary="Generate images, as clients of AUTOMATIC1111's web UI ask for them",
    response_model=A1111Images,
    responses=_errors(400, 413, 422, 429, 500, 502, 503, 504),
)
async def txt2img(body: Txt2ImgRequest, asked: DoorRequestDep) -> Response:
    """Answer with the images once they are there.

    The job is an ordinary one, whose name is in the header `X-KubeDiffusion-Job`. A client that hangs up cancels it,
    unless it sent an `Idempotency-Key`, by which it can ask again.
    """
    return await _drawn(asked, _wanted(body, asked), _Echo.of(body))


@router.post(
    "/img2img",
    dependencies=[Rated],
    summary="Make images of an image, as clients of AUTOMATIC1111's web UI ask for them",
    response_model=A1111Images,
    responses=_errors(400, 413, 422, 429, 500, 502, 503, 504),
    openapi_extra=request_body(Img2ImgRequest, JSON),
)
async def img2img(asked: DoorRequestDep, inputs: InputsDep) -> Response:
    """Answer with the images once they are there, as `txt2img` does.

    The image, and a mask, are stored as `POST /v1/inputs` stores them. Where there is a mask, only its white is painted
    anew.
    """
    # The images are in memory for as long as the place is taken, and not while the job runs.
    with inputs.place(asked.identity) as place:
        wanted, echo = await _stored(await place.read(ImagesRequest.of(asked.request).stream()), asked, place)
    return await _drawn(asked, wanted, echo)


async def _stored(body: bytes, asked: DoorRequest, place: UploadPlace) -> tuple[JobRequest, _Echo]:
    """Store the images of a request."""
    found = parse_request(body)
    del body
    # What is refused is refused before anything is stored.
    wanted = _wanted(found, asked)
    echo = _Echo.of(found)

    async def store(role: InputRole, data: bytes, field: str, change: Change | None = None) -> InputImage:
        stored = await place.store(data, field=field, change=change)
        return InputImage.model_validate({"role": role, "id": stored.id})

    # The text of an image is let go once it is decoded: it is as large as the image and a third.
    data = await asyncio.to_thread(image_bytes, found.init_images.pop(0), "init_images")
    found.init_images.clear()
    named = [await store(InputRole.IMAGE, data, "init_images")]
    if found.mask:
        data = await asyncio.to_thread(image_bytes, found.mask, "mask")
        found.mask = None
        change = kept if found.inpainting_mask_invert else painted_anew
        named.append(await store(InputRole.MASK, data, "mask", change))
    begun = wanted.model_copy(update={"inputs": named, "strength": found.strength})
    return begun, echo


@router.get("/progress", summary="How far the client's jobs are", responses=_errors())
async def progress(
    state: AppStateDep,
    previews: PreviewsDep,
    identity: IdentityDep,
    skip_current_image: Annotated[bool, Query(description="Whether to leave the preview out.")] = False,
) -> A1111Progress:
    """Show the oldest job of the API key that runs; without keys, of the namespace."""
    subject = identity.subject
    unfinished = state.jobs.unfinished_of(subject) if subject else state.jobs.unfinished
    job = state.jobs.oldest_running(subject or None)
    if job is None:
        idle = A1111State(job="", job_count=unfinished, sampling_step=0, sampling_steps=0)
        return A1111Progress(progress=0, eta_relative=0, state=idle)
    status = job.parse().status
    step, total = (status.progress.step, status.progress.total) if status.progress else (0, 0)
    share = step / total if total else 0.0
    preview = None
    if not skip_current_image:
        with contextlib.suppress(TooManyRequestsError):  # the progress is worth an answer without a picture
            preview = await previews.latest(job)
    elapsed = (dt.datetime.now(dt.UTC) - status.start_time).total_seconds() if status.start_time else 0.0
    return A1111Progress(
        progress=share,
        eta_relative=max(0.0, elapsed * (1 - share) / share) if share else 0.0,
        state=A1111State(job=job.name, job_count=unfinished, sampling_step=step, sampling_steps=total),
        current_image=None if preview is None else base64.b64encode(preview.data).decode(),
    )


@router.post("/interrupt", summary="Refused: it does not say which job", responses=_errors(501))
async def interrupt() -> None:
    """Say how a job is stopped."""
    raise NotOfferedError(
        "It does not say which of the jobs here is meant. Close the connection of the request, which cancels its job; "
        "or POST /v1/jobs/{name}/cancel with the name of GET /sdapi/v1/progress, under state.job."
    )


@router.get("/sd-models", summary="List models", responses=_errors())
async def list_models(state: AppStateDep) -> list[A1111Model]:
    """List the namespace's models."""
    return [model_view(model) for model in state.models.all()]


@router.get("/loras", summary="List adapters", responses=_errors())
async def list_loras(state: AppStateDep) -> list[A1111Lora]:
    """List the namespace's adapters, which `<lora:NAME:SCALE>` in a prompt names."""
    return [lora_view(adapter) for adapter in state.models.adapters.all()]


@router.get("/samplers", summary="List samplers", responses=_errors())
async def list_samplers() -> list[A1111Sampler]:
    """List the samplers that jobs can name; not every model can be run with each."""
    return samplers()


@router.get("/schedulers", summary="List schedules of the noise", responses=_errors())
async def list_schedulers() -> list[A1111Scheduler]:
    """List the one there is: the model's own."""
    return [A1111Scheduler()]


@router.get("/options", summary="Show the settings", responses=_errors())
async def show_options(state: AppStateDep) -> A1111Options:
    """Show the model of requests that name none."""
    return A1111Options(sd_model_checkpoint=state.models.default_name)


@router.post("/options", summary="Refused where it would change a setting", responses=_errors(413, 422, 501))
async def set_options(
    state: AppStateDep, body: Annotated[dict[str, Any], Body(description="Settings by name.")]
) -> None:
    """Take the settings that hold already, and say that no others can be set."""
    held = (await show_options(state)).model_dump()
    changed = [name for name, value in body.items() if name not in held or held[name] != value]
    if changed:
        raise NotOfferedError(
            f"This server keeps no settings between requests, so it cannot set {', '.join(changed)[:200]}. Send "
            "override_settings.sd_model_checkpoint with each request; the default model is annotated in the cluster."
        )
