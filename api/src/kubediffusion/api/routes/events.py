"""``/v1`` as streams: what a poll would say, as soon as it says something else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from kubediffusion.api.access.identity import Identity
from kubediffusion.api.dependencies import (
    AppState,
    AppStateDep,
    IdentityDep,
    JobServiceDep,
    JsonRoute,
    PreviewsDep,
)
from kubediffusion.api.errors import ApiError, JobGoneError, TaskNotFoundError, UnavailableError
from kubediffusion.api.job_events.states import EventId
from kubediffusion.api.job_events.streams import Stream
from kubediffusion.api.previews import PreviewEvents
from kubediffusion.api.routes.jobs import Labels, ModelName, Name, Phases, job_filter
from kubediffusion.api.routes.responses import errors

HEADERS = {
    "Cache-Control": "no-store",
    # nginx and its kind would keep events back until a buffer is full.
    "X-Accel-Buffering": "no",
}

router = APIRouter(prefix="/v1", route_class=JsonRoute, tags=["events"])


class EventStream(StreamingResponse):
    """Server-sent events.

    FastAPI's class of that kind is for generators that it runs itself: with a task and a queue more for each stream.
    """

    media_type = "text/event-stream"


LastEventId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", description="The `id` of the last event that the client has, from any replica."),
]


async def _counted(state: AppStateDep, identity: IdentityDep) -> AsyncGenerator[None, None]:
    # FastAPI leaves the context once the response has ended, however it ends.
    with state.streams.opened(identity.client):
        yield


Counted = Depends(_counted)


def _events(description: str) -> dict[int | str, dict[str, Any]]:
    # No schema: what one says, the text as a whole or each event, is read in two ways.
    return {200: {"content": {EventStream.media_type: {}}, "description": description}}


@router.get(
    "/jobs/{name}/events",
    summary="Follow a job",
    response_class=Response,
    dependencies=[Counted],
    responses={
        **_events("Events `state`, and `preview` where it was asked for, then `end` or `deleted`."),
        204: {"description": "The job has ended, and the client has been told its last state: nothing will come."},
        **errors(404, 410, 429, 503),
    },
)
async def follow_job(
    name: Name,
    request: Request,
    service: JobServiceDep,
    state: AppStateDep,
    identity: IdentityDep,
    reader: PreviewsDep,
    previews: Annotated[
        bool, Query(description="Send previews of the image that is being made, too, once a second at most.")
    ] = False,
    last_event_id: LastEventId = None,
) -> Response:
    """Send the job's state at once, then each that is another, as server-sent events; its end ends the stream."""
    told = EventId.parse(last_event_id)
    try:
        job = await service.read(name, identity)
    except TaskNotFoundError as error:
        if told is None:
            raise
        raise JobGoneError("The job has been deleted.") from error
    if not state.streams.has_news(job, told):
        return Response(status_code=204, headers=HEADERS)
    looks = PreviewEvents(reader) if previews and identity.sees_previews_of(job) else None
    return _stream(request, state.streams.of_job(job, told, _still_allowed(request, state), looks))


@router.get(
    "/events",
    summary="Follow jobs",
    response_class=Response,
    dependencies=[Counted],
    responses={**_events("Events `state`, `end`, `deleted` and `bookmark`."), **errors(422, 429, 503)},
)
async def follow_jobs(
    request: Request,
    state: AppStateDep,
    identity: IdentityDep,
    phase: Phases = None,
    model: ModelName = None,
    label: Labels = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Send the states of the jobs that have not finished, then each change of any job, as server-sent events.

    With `Last-Event-ID` it begins with what has changed since.
    """
    if not state.watches.ready:
        raise UnavailableError("The server is starting and has not seen all jobs yet.", 1)
    wanted = job_filter(phase, model, label, identity)
    told = EventId.parse(last_event_id)
    return _stream(request, state.streams.of_jobs(wanted, told, _still_allowed(request, state)))


def _still_allowed(request: Request, state: AppState) -> Callable[[], Awaitable[bool]]:
    headers = request.headers.raw
    identity: Identity = request.state.identity

    async def allowed() -> bool:
        """Return whether the request would be let in still, as the same caller's."""
        try:
            return await state.access.identify(headers, identity.client) == identity
        except ApiError:
            return False

    return allowed


def _stream(request: Request, events: Stream) -> Response:
    if getattr(request.state, "head", False):
        return Response(media_type=EventStream.media_type, headers=HEADERS)
    return EventStream(events, headers=HEADERS)
