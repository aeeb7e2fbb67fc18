"""``POST /v1/jobs``: one job, or several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from kubediffusion.api.dependencies import (
    AppStateDep,
    IdempotencyKey,
    IdentityDep,
    JobServiceDep,
    ListRoute,
    Prefer,
    Rated,
    preferred_wait,
    unless_gone,
)
from kubediffusion.api.errors import ApiError, TaskNotFoundError, api_error
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.routes.jobs import waited
from kubediffusion.api.routes.responses import errors, links
from kubediffusion.api.schemas import JobOutcome, JobOutcomeList, JobRequestList, JobView, OneOrSeveralJobs
from kubediffusion.api.service import JobService
from kubediffusion.resources.apiserver.errors import KubernetesError

Outcome = CachedJob | ApiError | KubernetesError
"""A job, or why there is none."""

OF_A_JOB = (
    "show_job_v1_jobs__name__get",
    "show_recipe_v1_jobs__name__recipe_get",
    "cancel_job_v1_jobs__name__cancel_post",
    "follow_job_v1_jobs__name__events_get",
    "get_image_v1_jobs__name__images__index__get",
    "show_preview_v1_jobs__name__preview_get",
    "delete_job_v1_jobs__name__delete",
)
"""The operations of one job, which the document links with its creation."""

router = APIRouter(prefix="/v1", route_class=ListRoute)


@router.post(
    "/jobs",
    dependencies=[Rated],
    status_code=201,
    tags=["jobs"],
    summary="Create a job, or several",
    response_model=JobView | JobOutcomeList,
    responses={
        201: {"links": links("name", "/name", *OF_A_JOB)},
        207: {"model": JobOutcomeList, "description": "Of several jobs, some could not be created."},
        **errors(413, 422, 429, 503),
    },
)
async def create_job(
    request: Request,
    response: Response,
    body: OneOrSeveralJobs,
    service: JobServiceDep,
    state: AppStateDep,
    identity: IdentityDep,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> JobView | JobOutcomeList:
    """Create a job and show it: at once, or with `Prefer: wait=N` once it has finished.

    With `{"jobs": [...]}` up to 100 at once: each counts against the rate, and if one is refused none is created.
    """
    if isinstance(body, JobRequestList):
        outcomes = await service.submit_all(body.jobs, identity, idempotency_key)
        return await _shown(outcomes, request, response, service, prefer)
    job = await service.submit(body, identity, idempotency_key)
    response.headers["Location"] = f"{state.settings.root_path}/v1/jobs/{job.name}"
    return service.view(await waited(job, request, response, service, prefer))


async def _shown(
    outcomes: Sequence[Outcome],
    request: Request,
    response: Response,
    service: JobService,
    prefer: str | None,
) -> JobOutcomeList:
    """Show what became of several jobs; the error of the first where that is nothing."""
    failures = [outcome for outcome in outcomes if not isinstance(outcome, CachedJob)]
    if len(failures) == len(outcomes):
        raise failures[0]
    if failures:
        response.status_code = 207
    if (seconds := preferred_wait(prefer)) is not None:
        response.headers["Preference-Applied"] = f"wait={seconds}"
        waits = (_end_or_now(job, service, seconds) for job in outcomes)
        outcomes = await unless_gone(request, asyncio.gather(*waits))
    return JobOutcomeList(jobs=[_outcome(each, service) for each in outcomes])


async def _end_or_now(outcome: Outcome, service: JobService, seconds: float) -> Outcome:
    if not isinstance(outcome, CachedJob):
        return outcome
    try:
        return await service.wait(outcome, seconds)
    except TaskNotFoundError as error:
        return error


def _outcome(outcome: Outcome, service: JobService) -> JobOutcome:
    if isinstance(outcome, CachedJob):
        return JobOutcome(status=201, job=service.view(outcome), detail=None)
    error = api_error(outcome)
    return JobOutcome(status=error.status, job=None, detail=error.detail)
