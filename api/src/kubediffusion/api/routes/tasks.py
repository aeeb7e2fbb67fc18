"""The task API: ``POST /generate`` and ``GET /results/{task_id}``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import Response

from kubediffusion.api.dependencies import (
    AppStateDep,
    ClientDep,
    IdempotencyKey,
    ImagesDep,
    JobServiceDep,
    JsonRoute,
    KeyNameDep,
)
from kubediffusion.api.job_cache.results import cached_result, result_body, result_body_with_url, warning_headers
from kubediffusion.api.routes.responses import errors
from kubediffusion.api.schemas import JobRequest, TaskAccepted, TaskResult, TaskResultWithUrl
from kubediffusion.api.settings import ImageForm, Settings
from kubediffusion.resources.generation_job import Phase

CREATION = "creation"
"""Both doors of creation, this one and ``/v1``, count against one limit."""


def task_routes(settings: Settings, limiter: Limiter) -> APIRouter:
    """Build the router."""
    router = APIRouter(route_class=JsonRoute, tags=["tasks"])

    @router.post(
        "/generate",
        status_code=202,
        summary="Generate an image",
        responses=errors(413, 422, 429, 503),
    )
    @limiter.shared_limit(settings.rate_limit or "1/second", scope=CREATION)
    async def generate(
        request: Request,  # noqa: ARG001 - slowapi asks for it
        body: JobRequest,
        service: JobServiceDep,
        client: ClientDep,
        key_name: KeyNameDep,
        idempotency_key: IdempotencyKey = None,
    ) -> TaskAccepted:
        """Accept a task. Ask `GET /results/{task_id}` for the outcome."""
        entry = await service.submit(body, client, key_name, idempotency_key)
        return TaskAccepted(task_id=entry.name)

    @router.get(
        "/results/{task_id}",
        summary="Where a task stands, and its image",
        response_model=TaskResult | TaskResultWithUrl,
        responses=errors(404, 410, 422, 429, 502, 503),
    )
    async def result(
        task_id: str,
        service: JobServiceDep,
        images: ImagesDep,
        state: AppStateDep,
        client: ClientDep,
        image: Annotated[
            ImageForm | None,
            Query(description="Whether a completed task carries its image or the image's address."),
        ] = None,
    ) -> Response:
        """Poll until `status` is `completed` or `failed`.

        A job that `kubectl` created is a task as well: its name is the task id. Of several images the first is given;
        `/v1` has all. A warning, such as a prompt that was cut, comes in the header `X-KubeDiffusion-Warning`.
        """
        entry = await service.read(task_id, client)
        form = image or state.settings.image_form
        headers = warning_headers(entry)
        if form is ImageForm.URL:
            url = None
            if entry.phase is Phase.SUCCEEDED and entry.images:
                url = await images.url(entry.images[0], state.settings.presign_seconds)
            return _json(result_body_with_url(entry, url), headers)
        if (answer := cached_result(entry)) is not None:
            return _json(answer[1], headers)
        data = await images.read(entry.images[0]) if entry.images else None
        return _json(result_body(entry, data), headers)

    return router


def _json(body: bytes, headers: dict[str, str]) -> Response:
    return Response(body, media_type="application/json", headers=headers)
