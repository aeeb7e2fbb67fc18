"""``/v1``: jobs with all that there is to say about them, their images, and the models."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Annotated, Literal

import yaml
from fastapi import APIRouter, Header, Path, Query
from pydantic import AwareDatetime, BeforeValidator, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from kubediffusion.api.access.identity import Identity
from kubediffusion.api.adapter_schemas import AdapterList
from kubediffusion.api.dependencies import (
    AppStateDep,
    IdentityDep,
    ImagesDep,
    JobServiceDep,
    JsonRoute,
    Prefer,
    PreviewsDep,
    preferred_wait,
    unless_gone,
)
from kubediffusion.api.errors import (
    ModelNotFoundError,
    PreviewNotFoundError,
    UnavailableError,
)
from kubediffusion.api.images import ImageResponse
from kubediffusion.api.job_cache.filters import JobFilter
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.job_cache.results import warning_headers
from kubediffusion.api.model_schemas import ModelDetail, ModelList
from kubediffusion.api.routes.cursors import decoded_cursor, encoded_cursor
from kubediffusion.api.routes.responses import Responses, errors, links
from kubediffusion.api.schemas import EXAMPLE_ID, EXAMPLE_MODEL, EXAMPLE_RUNNING_ID, JobList, JobView
from kubediffusion.api.service import MAX_NAME, JobService
from kubediffusion.api.settings import ImageForm
from kubediffusion.api.translate import adapter_view, model_view, openai_model, recipe_manifest
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.storage import PNG

IMAGE_INDEX_HEADER = "X-KubeDiffusion-Image-Index"
"""Of a preview: which of the job's images it shows."""

JSON = "application/json"
YAML = "application/yaml"

MAX_PAGE = 500

Name = Annotated[str, Path(description="The job's name, which is the task id.", examples=[EXAMPLE_ID])]
RunningName = Annotated[str, Path(description="The job's name, which is the task id.", examples=[EXAMPLE_RUNNING_ID])]


def _written_date(value: object) -> object:
    """Refuse numbers, which pydantic takes for seconds since the epoch."""
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d", value):
        raise ValueError("Input should be a date and a time of RFC 3339, such as 2026-11-30T09:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_written_date)]
CreatedAfter = Annotated[
    Moment | None, Query(description="Only jobs that were created then or later, with its offset (RFC 3339).")
]
CreatedBefore = Annotated[Moment | None, Query(description="Only jobs that were created before that.")]
Text = Annotated[
    str | None,
    Query(
        description="Only jobs whose prompt has this text in it, in upper case or lower.", min_length=1, max_length=200
    ),
]
IfNoneMatch = Annotated[str | None, Header(description="The ETag of a copy that the client has.")]

LABEL = r"^[A-Za-z0-9]([A-Za-z0-9./_-]*[A-Za-z0-9])?(=([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?)?$"
"""A label's key, or a key and a value, by Kubernetes' rules as far as a wrong one could be mistaken for another."""

Phases = Annotated[list[Phase] | None, Query(description="Only jobs in these phases.")]
ModelName = Annotated[str | None, Query(description="Only jobs of this model.")]
Labels = Annotated[
    list[Annotated[str, StringConstraints(pattern=LABEL, max_length=400)]] | None,
    Query(
        description="Only jobs whose GenerationJob has this label: `key=value`, or `key` for any value. Several must "
        "all be there.",
        max_length=10,
    ),
]

MODEL_LINKS: Responses = {200: {"links": links("name", "/models/0/name", "show_model_v1_models__name__get")}}

router = APIRouter(prefix="/v1", route_class=JsonRoute)


def job_filter(
    phases: list[Phase] | None, model: str | None, labels: list[str] | None, identity: Identity
) -> JobFilter:
    """Build the filter of a list or a stream from its query, and of what the caller sees."""
    pairs = (label.partition("=") for label in labels or ())
    return JobFilter(
        None if phases is None else frozenset(phases),
        model,
        tuple((key, value if separator else None) for key, separator, value in pairs),
        client=identity.owner,
    )


@router.get("/jobs", tags=["jobs"], summary="List jobs", responses=errors(422, 503))
async def list_jobs(
    service: JobServiceDep,
    state: AppStateDep,
    identity: IdentityDep,
    phase: Phases = None,
    model: ModelName = None,
    label: Labels = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    text: Text = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Jobs in a page.")] = 100,
    continue_token: Annotated[
        str | None, Query(alias="continue", description="`continue_token` of the page before.")
    ] = None,
) -> JobList:
    """List the namespace's jobs, newest first.

    A page may have fewer jobs than `limit`, or none, where few match: there is more as long as `continue_token` is not
    null.
    """
    if not state.watches.ready:
        raise UnavailableError("The server is starting and has not seen all jobs yet.", 1)
    before = decoded_cursor(continue_token, "continue", "continue_token")
    wanted = replace(
        job_filter(phase, model, label, identity),
        created_after=None if created_after is None else created_after.timestamp(),
        created_before=None if created_before is None else created_before.timestamp(),
        text=text,
    )
    jobs, end = await service.page(wanted, limit, before)
    return JobList(jobs=jobs, continue_token=None if end is None else encoded_cursor(end))


@router.get(
    "/jobs/{name}",
    tags=["jobs"],
    summary="Show a job",
    response_model=JobView,
    responses={304: {"description": "The client has it already."}, **errors(404, 429, 503)},
)
async def show_job(
    name: Name,
    service: JobServiceDep,
    identity: IdentityDep,
    request: Request,
    response: Response,
    prefer: Prefer = None,
    if_none_match: IfNoneMatch = None,
) -> JobView | Response:
    """Show what was asked for, where it stands and why it waits, and how it was run.

    With `Prefer: wait=N` the answer comes once the job has finished.
    """
    job = await service.read(name, identity)
    job = await waited(job, request, response, service, prefer)
    response.headers.update(warning_headers(job))
    response.headers["ETag"] = tag = service.view_tag(job)
    if _has_tag(if_none_match, tag):
        return Response(status_code=304, headers=dict(response.headers))
    return service.view(job)


@router.get(
    "/jobs/{name}/recipe",
    tags=["jobs"],
    summary="Get the manifest that makes a job's images again",
    response_class=Response,
    responses={
        200: {"content": {YAML: {"schema": {"type": "object"}}, JSON: {"schema": {"type": "object"}}},
              "description": "A GenerationJob."},
        **errors(404, 409, 422, 429, 503),
    },
)  # fmt: skip
async def show_recipe(
    name: Name,
    service: JobServiceDep,
    state: AppStateDep,
    identity: IdentityDep,
    form: Annotated[
        Literal["yaml", "json"] | None, Query(alias="format", description="When absent, `Accept` says; else YAML.")
    ] = None,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """Return a GenerationJob for `kubectl apply` with every default and the seed resolved, as the job was run."""
    job = (await service.read(name, identity)).parse()
    ran = job.status.parameters
    manifest = recipe_manifest(job, None if ran is None else state.models.find(ran.model))
    if form == "json" or (form is None and JSON in accept and "yaml" not in accept):
        return JSONResponse(manifest)
    return Response(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True), media_type=YAML)


@router.post(
    "/jobs/{name}/cancel",
    status_code=202,
    tags=["jobs"],
    summary="Cancel a job",
    responses=errors(404, 409, 429, 503),
)
async def cancel_job(name: RunningName, service: JobServiceDep, identity: IdentityDep) -> JobView:
    """Ask for the job to stop: at once if it waits, at the next denoising step if it runs."""
    return service.view(await service.cancel(name, identity))


@router.delete("/jobs/{name}", status_code=204, tags=["jobs"], summary="Delete a job", responses=errors(404, 503))
async def delete_job(name: Name, service: JobServiceDep, identity: IdentityDep) -> None:
    """Delete the job, whatever it is doing; its images too, if its `deletion_policy` is `Delete`."""
    await service.delete(name, identity)


@router.get(
    "/jobs/{name}/images/{index}",
    tags=["jobs"],
    summary="Get an image",
    response_class=Response,
    responses={
        200: {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}, "description": "The PNG."},
        304: {"description": "The client has it already."},
        307: {"description": "To the image's presigned address, with `?image=url`."},
        **errors(404, 410, 422, 429, 502, 503),
    },
)
async def get_image(
    name: Name,
    index: Annotated[int, Path(ge=0, description="Which of the job's images, from 0.", examples=[0])],
    service: JobServiceDep,
    images: ImagesDep,
    state: AppStateDep,
    identity: IdentityDep,
    image: Annotated[ImageForm | None, Query(description="`url` redirects to storage.")] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return the PNG. Its ETag is the SHA-256 of its bytes, as in the job's status."""
    job = await service.read(name, identity)
    stored = service.image(job, index)
    if (image or state.settings.image_form) is ImageForm.URL:
        return RedirectResponse(await images.url(job, stored, state.settings.presign_seconds), 307)
    tag = f'"{stored.sha256}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable"}
    if _has_tag(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    return ImageResponse(await images.open(job, stored), PNG, headers)


@router.get(
    "/jobs/{name}/preview",
    tags=["jobs"],
    summary="Get a preview of an image that is being made",
    response_class=Response,
    responses={
        200: {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}, "description": "A small PNG."},
        304: {"description": "The client has it already."},
        **errors(404, 429, 503),
    },
)
async def show_preview(
    name: RunningName,
    service: JobServiceDep,
    previews: PreviewsDep,
    identity: IdentityDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a small PNG of what the job's image will look like, roughly. It changes once a second at most.

    The first request has the job's worker make previews; until there is one it is 404, with `Retry-After`.
    """
    job = await service.read(name, identity)
    if job.finished:
        raise PreviewNotFoundError(f"The job has no preview any more: it is {job.phase}.")
    if not identity.sees_previews_of(job):
        raise PreviewNotFoundError("Previews are for the API key that the job was created with.")
    preview = await previews.latest(job)
    if preview is None:
        raise PreviewNotFoundError(
            f"There is no preview yet: the job is {job.phase}. Models with a safety checker, and those that run by "
            "diffusers' own call, have none.",
            later=True,
        )
    tag = f'"{hashlib.sha256(preview.data).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-store", IMAGE_INDEX_HEADER: str(preview.index)}
    if _has_tag(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    return Response(preview.data, media_type=PNG, headers=headers)


@router.get(
    "/models",
    tags=["models"],
    summary="List models",
    responses={200: {"links": links("name", "/models/0/name", "show_model_v1_models__name__get")}, **errors()},
)
async def list_models(state: AppStateDep) -> ModelList:
    """List the namespace's models: whether each is available, its defaults and its limits."""
    models = state.models.all()
    return ModelList(
        models=[model_view(model, state.models.adapters.of(model.name)) for model in models],
        data=[openai_model(model) for model in models],
    )


@router.get("/models/{name}", tags=["models"], summary="Show a model", responses=errors(404))
async def show_model(
    name: Annotated[str, Path(description="The model's name.", examples=[EXAMPLE_MODEL])], state: AppStateDep
) -> ModelDetail:
    """Show whether a model is available, its defaults and its limits."""
    model = state.models.find(name)
    if model is None:
        raise ModelNotFoundError(f"There is no model {name[:MAX_NAME]!r}; GET /v1/models lists those that there are.")
    return ModelDetail(**dict(model_view(model, state.models.adapters.of(model.name))), **dict(openai_model(model)))


@router.get("/adapters", tags=["models"], summary="List adapters", responses=errors())
async def list_adapters(state: AppStateDep) -> AdapterList:
    """List the namespace's LoRA adapters: of which model each is, whether a worker holds it, and why not."""
    return AdapterList(adapters=[adapter_view(adapter) for adapter in state.models.adapters.all()])


def _has_tag(if_none_match: str | None, tag: str) -> bool:
    """Return whether an ``If-None-Match`` names a tag; both are compared as weak ones (RFC 9110, 13.1.2)."""
    return if_none_match is not None and (if_none_match.strip() == "*" or tag.removeprefix("W/") in if_none_match)


async def waited(
    job: CachedJob, request: Request, response: Response, service: JobService, prefer: str | None
) -> CachedJob:
    """Return a job once it has finished, if the request prefers to wait for that; the response says so."""
    seconds = preferred_wait(prefer)
    if seconds is None:
        return job
    response.headers["Preference-Applied"] = f"wait={seconds}"
    return await unless_gone(request, service.wait(job, seconds))
