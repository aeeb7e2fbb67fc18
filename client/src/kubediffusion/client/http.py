"""KubeDiffusion over its HTTP API (``/v1``, docs/api.md)."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import httpx
from pydantic import ValidationError

from kubediffusion.client.errors import (
    ConflictError,
    CorruptImageError,
    FieldProblem,
    ImageGoneError,
    InvalidRequestError,
    KubeDiffusionError,
    NotFoundError,
    PermissionDeniedError,
    TooManyRequestsError,
    UnavailableError,
    UnreachableError,
)
from kubediffusion.client.requests import Spec
from kubediffusion.client.retries import Retries
from kubediffusion.client.views import AdapterView, ImageView, JobPage, JobSummary, JobView, ModelView
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.schema import Schema

MOST_WAIT_SECONDS = 60
"""The most that the server waits for a job's end before it answers."""

SHORTEST_WAIT_SECONDS = 0.5
"""A question for a job's end takes at least so long, also where something on the way does not let the server wait."""

MARGIN_SECONDS = 15.0
"""How much later than the server was asked to its answer may come."""

WATCHED_SECONDS = 1.0
"""How often it is asked where somebody looks at the progress; workers tell theirs once a second."""

View = TypeVar("View", bound=Schema)

_ERRORS: Mapping[int, type[KubeDiffusionError]] = {
    401: PermissionDeniedError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: UnavailableError,
    409: ConflictError,
    410: ImageGoneError,
    429: TooManyRequestsError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}


_REDACTOR = Redactor(())
"""Takes credentials out of addresses, which are in most errors."""


class HttpTransport:
    """The HTTP API at one address.

    Args:
        server: Its address, as in ``http://localhost:8000``; with the prefix, where it is served under one.
        api_key: The API key, where the server asks for one.
        request_seconds: How long the server may be silent. Where it was asked to wait, that much longer.
        retries: What becomes of requests that fail for a while.
    """

    watched_seconds = WATCHED_SECONDS

    def __init__(self, server: str, api_key: str | None, request_seconds: float, retries: Retries) -> None:
        server = server.strip()
        address = server if "://" in server else f"http://{server}"
        self.place = _REDACTOR.redact(address)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.AsyncClient(
                base_url=address.rstrip("/"),
                headers={"User-Agent": "kubediffusion-client", "Accept": "application/json", **headers},
                timeout=httpx.Timeout(request_seconds, connect=min(request_seconds, 10.0)),
            )
        except httpx.InvalidURL as error:
            problem = FieldProblem("server", f"{self.place!r} is no address: {error}")
            raise InvalidRequestError([problem]) from error
        self._seconds = request_seconds
        self._retries = retries

    async def submit(self, spec: Spec, key: str) -> JobView:
        """Create a job by ``POST /v1/jobs``; the server knows one of the same ``Idempotency-Key`` again."""
        return await self._view(JobView, "POST", "/v1/jobs", json=spec, headers={"Idempotency-Key": key})

    async def job(self, name: str) -> JobView:
        """Ask for a job once, without waiting."""
        return await self._view(JobView, "GET", _path(name))

    async def changed(self, job: JobView, seconds: float) -> JobView:
        """Ask for the job's end: the server answers once it has come, or when ``seconds`` have passed."""
        wait = max(1, min(math.ceil(seconds), MOST_WAIT_SECONDS))
        began = time.monotonic()
        view = await self._view(
            JobView,
            "GET",
            _path(job.name),
            headers={"Prefer": f"wait={wait}"},
            timeout=httpx.Timeout(wait + MARGIN_SECONDS, connect=10.0),
        )
        rest = SHORTEST_WAIT_SECONDS - (time.monotonic() - began)
        if not view.finished and rest > 0:
            await anyio.sleep(rest)
        return view

    async def cancel(self, name: str) -> JobView:
        """Cancel a job; that an earlier try has done so is no conflict."""
        try:
            return await self._view(JobView, "POST", f"{_path(name)}/cancel")
        except ConflictError:
            # The answer to an earlier try may have been lost.
            if (job := await self.job(name)).phase is Phase.CANCELLED:
                return job
            raise

    async def delete(self, name: str) -> None:
        """Delete a job by ``DELETE /v1/jobs/{name}``."""
        await self._request("DELETE", _path(name))

    async def page(self, phases: Collection[str], model: str | None, limit: int, token: str | None) -> JobPage:
        """Return one page, as the server cuts and sorts them."""
        query: dict[str, Any] = {"phase": list(phases), "model": model, "limit": limit, "continue": token}
        query = {name: value for name, value in query.items() if value not in (None, [])}
        return await self._view(JobPage, "GET", "/v1/jobs", params=query)

    async def image(self, job: JobSummary, image: ImageView) -> bytes:
        """Return the PNG, which the server reads from storage for whoever has no way there."""
        answer = await self._request("GET", f"{_path(job.name)}/images/{image.index}", params={"image": "base64"})
        return answer.content

    async def models(self) -> list[ModelView]:
        """Return the models of the server's namespace."""
        return list((await self._view(_ModelList, "GET", "/v1/models")).models)

    async def adapters(self) -> list[AdapterView]:
        """Return the adapters of the server's namespace."""
        return list((await self._view(_AdapterList, "GET", "/v1/adapters")).adapters)

    async def aclose(self) -> None:
        """Close the connections; a request that is under way fails."""
        await self._http.aclose()

    async def _view(self, kind: type[View], method: str, path: str, **options: Any) -> View:
        answer = await self._request(method, path, **options)
        try:
            return kind.from_wire(answer.json())
        except (ValueError, ValidationError) as error:
            remedy = "is this the address of KubeDiffusion's API, and is the API of this version?"
            raise KubeDiffusionError(
                f"{self.place} answered something else than a {kind.__name__}", remedy=remedy, status=answer.status_code
            ) from error

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def attempt() -> httpx.Response:
            try:
                answer = await self._http.request(method, path, **options)
            except httpx.ConnectError as error:
                raise UnreachableError(f"nobody answers at {self.place}: {error}") from error
            except httpx.UnsupportedProtocol as error:
                raise InvalidRequestError([FieldProblem("server", f"{self.place} is no address: {error}")]) from error
            except httpx.TransportError as error:
                problem = _REDACTOR.redact(str(error)) or type(error).__name__
                raise UnavailableError(
                    f"{self.place} broke off: {problem}", remedy=UnreachableError.default_remedy
                ) from error
            if answer.is_success:
                return answer
            raise error_of(answer)

        return await self._retries.run(attempt)


class _AdapterList(Schema):
    adapters: tuple[AdapterView, ...]


class _ModelList(Schema):
    models: tuple[ModelView, ...]


def error_of(answer: httpx.Response) -> KubeDiffusionError:
    """Build the error of an answer: a sentence in ``detail``, or the problems of single fields."""
    try:
        detail = answer.json()["detail"]
        if answer.status_code == 502:
            # The API's own words, as opposed to a gateway's page: storage has other bytes than the worker stored.
            return CorruptImageError(str(detail), status=502)
    except (ValueError, LookupError, TypeError):
        detail = f"{answer.status_code} {answer.reason_phrase}: {answer.text[:200]}".strip().rstrip(":")
    if answer.status_code in {400, 413, 422}:
        problems = [_problem(entry) for entry in detail] if isinstance(detail, list) else []
        return InvalidRequestError(problems or [FieldProblem(None, str(detail))], status=answer.status_code)
    kind = _ERRORS.get(answer.status_code, UnavailableError if answer.status_code >= 500 else KubeDiffusionError)
    seconds = answer.headers.get("Retry-After", "")
    return kind(str(detail), status=answer.status_code, retry_after=float(seconds) if seconds.isdigit() else None)


def _problem(entry: Any) -> FieldProblem:
    if not isinstance(entry, dict):
        return FieldProblem(None, str(entry))
    # The first part says where: body, query, header.
    field = ".".join(str(part) for part in entry.get("loc", ())[1:])
    return FieldProblem(field or None, str(entry.get("msg", entry)))


def _path(name: str) -> str:
    return f"/v1/jobs/{quote(name, safe='')}"
