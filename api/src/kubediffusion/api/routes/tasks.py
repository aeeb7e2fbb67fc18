"""The task API: ``POST /generate`` and ``GET /results/{task_id}``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from kubediffusion.api.dependencies import (
    AppStateDep,
    IdempotencyKey,
    IdentityDep,
    ImagesDep,
    JobServiceDep,
    JsonRoute,
    Rated,
    WaitSeconds,
    unless_gone,
)
from kubediffusion.api.images import ImageResponse
from kubediffusion.api.job_cache.results import (
    around_image,
    cached_result,
    result_body,
    result_body_with_url,
    warning_headers,
)
from kubediffusion.api.routes.responses import errors, links
from kubediffusion.api.schemas import EXAMPLE_ID, JobRequest, TaskAccepted, TaskResult, TaskResultWithUrl
from kubediffusion.api.settings import ImageForm
from kubediffusion.resources.generation_job import Phase

JSON = "application/json"

router = APIRouter(route_class=JsonRoute, tags=["tasks"])


@router.post(
    "/generate",
    dependencies=[Rated],
    status_code=202,
    summary="Generate an image",
    responses={
        202: {"links": links("task_id", "/task_id", "result_results__task_id__get")},
        **errors(413, 422, 429, 503),
    },
)
async def generate(
    body: JobRequest,
    service: JobServiceDep,
    identity: IdentityDep,
    idempotency_key: IdempotencyKey = None,
) -> TaskAccepted:
    """Accept a task. Ask `GET /results/{task_id}` for the outcome."""
    job = await service.submit(body, identity, idempotency_key)
    return TaskAccepted(task_id=job.name)


@router.get(
    "/results/{task_id}",
    summary="Where a task stands, and its image",
    response_model=TaskResult | TaskResultWithUrl,
    responses=errors(404, 410, 422, 429, 502, 503),
)
async def result(
    task_id: Annotated[
        str, Path(description="The `task_id` of `POST /generate`, or a job's name.", examples=[EXAMPLE_ID])
    ],
    service: JobServiceDep,
    images: ImagesDep,
    state: AppStateDep,
    identity: IdentityDep,
    request: Request,
    image: Annotated[
        ImageForm | None,
        Query(description="Whether a completed task carries its image or the image's address."),
    ] = None,
    wait: WaitSeconds = None,
) -> Response:
    """Poll until `status` is `completed` or `failed`; with `wait` one request may be enough.

    A job that `kubectl` created is a task as well: its name is the task id. Of several images the first is given;
    `/v1` has all. A warning, such as a prompt that was cut, comes in the header `X-KubeDiffusion-Warning`.
    """
    job = await service.read(task_id, identity)
    if wait:
        job = await unless_gone(request, service.wait(job, wait))
    form = image or state.settings.image_form
    headers = warning_headers(job)
    if form is ImageForm.URL:
        url = None
        if job.phase is Phase.SUCCEEDED and job.images:
            url = await images.url(job, job.images[0], state.settings.presign_seconds)
        return _json(result_body_with_url(job, url), headers)
    if (cached := cached_result(job)) is not None:
        return _json(cached[1], headers)
    if not job.images:
        return _json(result_body(job), headers)
    return ImageResponse(await images.open(job, job.images[0]), JSON, headers, around_image(job))


def _json(body: bytes, headers: dict[str, str]) -> Response:
    return Response(body, media_type=JSON, headers=headers)
