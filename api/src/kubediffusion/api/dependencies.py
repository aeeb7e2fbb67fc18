"""The dependencies of routes: what the app was built of, what exists while it runs, and who asks."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Query
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from kubediffusion.api.access.authenticator import Authenticator
from kubediffusion.api.access.identity import Identity
from kubediffusion.api.encoding import ImageEncoder
from kubediffusion.api.errors import ClientGoneError
from kubediffusion.api.images import ImageReader
from kubediffusion.api.inputs import MAX_BODY_BYTES, InputStore
from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_events.streams import JobStreams
from kubediffusion.api.metrics import Metrics
from kubediffusion.api.model_cache import ModelCache
from kubediffusion.api.previews import PreviewReader
from kubediffusion.api.service import JobService
from kubediffusion.api.settings import Settings
from kubediffusion.api.watches import Watches


@dataclass(frozen=True)
class AppState:
    """What an app is built of, before it connects to anything."""

    settings: Settings
    access: Authenticator
    metrics: Metrics
    jobs: JobCache
    models: ModelCache
    watches: Watches
    streams: JobStreams


@dataclass(frozen=True)
class LifespanState:
    """What exists while an app runs."""

    service: JobService
    images: ImageReader
    encoder: ImageEncoder
    previews: PreviewReader
    inputs: InputStore


# All of them coroutines: FastAPI would run plain functions in threads.
async def _app_state(request: Request) -> AppState:
    state: AppState = request.app.state.app_state
    return state


async def _lifespan_state(request: Request) -> LifespanState:
    state: LifespanState = request.state.connected
    return state


async def _service(request: Request) -> JobService:
    return (await _lifespan_state(request)).service


async def _images(request: Request) -> ImageReader:
    return (await _lifespan_state(request)).images


async def _encoder(request: Request) -> ImageEncoder:
    return (await _lifespan_state(request)).encoder


async def _previews(request: Request) -> PreviewReader:
    return (await _lifespan_state(request)).previews


async def _inputs(request: Request) -> InputStore:
    return (await _lifespan_state(request)).inputs


async def _identity(request: Request) -> Identity:
    identity: Identity = request.state.identity
    return identity


async def _rated(request: Request) -> None:
    service, identity = await _service(request), await _identity(request)
    request.state.late_headers = lambda: service.rate_headers(identity)


AppStateDep = Annotated[AppState, Depends(_app_state)]
JobServiceDep = Annotated[JobService, Depends(_service)]
ImagesDep = Annotated[ImageReader, Depends(_images)]
EncoderDep = Annotated[ImageEncoder, Depends(_encoder)]
PreviewsDep = Annotated[PreviewReader, Depends(_previews)]
InputsDep = Annotated[InputStore, Depends(_inputs)]
IdentityDep = Annotated[Identity, Depends(_identity)]
"""Who asks, and what they may do."""

Rated = Depends(_rated)
"""Of a route that creates jobs: its responses, errors too, tell the client what is left of its rate."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any unique text. Sent again with the same request, it gives the same task, and no second one.",
    ),
]


MOST_WAIT_SECONDS = 60
"""How long a request may wait for a job's end: proxies break off what is silent for longer."""

WaitSeconds = Annotated[
    float | None,
    Query(
        ge=0,
        le=MOST_WAIT_SECONDS,
        description="Answer once the task has finished, or after so many seconds, instead of at once.",
    ),
]

Prefer = Annotated[
    str | None,
    Header(
        description="`wait=10`: answer once the job has finished, or after so many seconds (60 at most), instead of at "
        "once (RFC 7240)."
    ),
]

_T = TypeVar("_T")


def preferred_wait(prefer: str | None, bare: int | None = None) -> int | None:
    """Return the seconds of ``wait`` in a ``Prefer`` header, 60 at most; None where it says nothing of the kind.

    A preference that is not understood is ignored, as RFC 7240 asks.

    Args:
        prefer: The header.
        bare: The seconds of a ``wait`` that names none; None where that is not understood.
    """
    for preference in (prefer or "").split(","):
        if bare is not None and preference.strip().lower() == "wait":
            return bare
        if found := re.fullmatch(r'\s*wait\s*=\s*"?(\d{1,9})"?\s*(;.*)?', preference, re.IGNORECASE):
            return min(int(found[1]), MOST_WAIT_SECONDS)
    return None


async def unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """Await something for as long as the client keeps its connection.

    Args:
        request: The request, whose body has been read.
        work: What its response needs.

    Raises:
        ClientGoneError: The client has closed the connection; the work is cancelled.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class JsonRequest(Request):
    """A request whose body is bounded, and whose JSON is read strictly by RFC 8259.

    Python's own parser lets lone surrogates through, which fail much later, when the prompt is encoded for the API
    server; and it recurses as deep as a body tells it to. NaN and Infinity do pass here: the field that holds one is
    refused by name.
    """

    @staticmethod
    def limit(settings: Settings) -> int:
        """Return how many bytes a body may have."""
        return settings.max_body_bytes

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in pieces, up to the limit.

        Starlette has a limit of its own; it answers in plain text, where every other error here is JSON.

        Raises:
            HTTPException: 413, the body is longer; what is left of it is not read.
        """
        limit = self.limit((await _app_state(self)).settings)
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        size = 0
        async for piece in super().stream():
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            yield piece

    async def json(self) -> object:
        """Decode the body.

        Raises:
            json.JSONDecodeError: It is not JSON.
        """
        body = await self.body()
        try:
            return from_json(body)
        except ValueError as error:
            # The error that FastAPI expects of its parser.
            raise json.JSONDecodeError(str(error), "", 0) from error


class ImagesRequest(JsonRequest):
    """A request whose body may hold images. It is read by whoever has a place of :class:`InputStore`."""

    @staticmethod
    def limit(_: Settings) -> int:
        """Return how many bytes a body may have."""
        return MAX_BODY_BYTES

    @classmethod
    def of(cls, request: Request) -> ImagesRequest:
        """Return a request, of which nothing has been read, with this limit."""
        return cls(request.scope, request.receive)


class ListRequest(JsonRequest):
    """A request whose body may hold several jobs."""

    @staticmethod
    def limit(settings: Settings) -> int:
        """Return how many bytes a body may have."""
        return settings.max_list_bytes


def _too_large(limit: int) -> HTTPException:
    # Starlette's own kind: FastAPI lets it pass while it reads a body, and takes any other for a broken one.
    return HTTPException(413, f"The request body is too large: at most {limit} bytes are taken.")


class JsonRoute(APIRoute):
    """A route whose requests are :class:`JsonRequest`."""

    request_class: type[JsonRequest] = JsonRequest

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Build a handler whose requests are of ``request_class``, which reads and bounds their bodies."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(self.request_class(request.scope, request.receive))

        return handle


class ListRoute(JsonRoute):
    """A route whose requests may hold several jobs."""

    request_class = ListRequest
