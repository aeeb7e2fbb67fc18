"""The responses of ``GET /results``: a job in the task API's words, as bytes.

Polls are most of the traffic, and most polls find a job that has not finished. Their response is built once a change of
state and kept with the job, and :class:`PollingMiddleware` sends it before the framework's machinery.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_cache.records import CachedJob, Headers
from kubediffusion.resources.generation_job import Phase

Status = Literal["pending", "processing", "completed", "failed"]

STATUS: dict[Phase, Status] = {
    Phase.PENDING: "pending",
    Phase.SCHEDULED: "pending",
    Phase.RUNNING: "processing",
    Phase.SUCCEEDED: "completed",
    Phase.FAILED: "failed",
    Phase.CANCELLED: "failed",
}

JOB_HEADER = "X-KubeDiffusion-Job"
WARNING_HEADER = "X-KubeDiffusion-Warning"
MAX_WARNING_LENGTH = 1000

PREFIX = "/results/"
ROUTE = "/results/{task_id}"


class PollingMiddleware:
    """Answers ``GET /results/{task_id}`` where the cache holds the whole response; the route answers everything else.

    Args:
        app: The app behind.
        jobs: The cache.
    """

    def __init__(self, app: ASGIApp, jobs: JobCache) -> None:
        self._app = app
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if (
            scope["type"] == "http"
            and scope["path"].startswith(PREFIX)
            and scope["method"] == "GET"
            and not scope["query_string"]
            and (job := self._jobs.get(scope["path"][len(PREFIX) :])) is not None
            # What the caller does not see is for the route to refuse.
            and scope["state"]["identity"].sees(job)
            and (result := cached_result(job)) is not None
        ):
            headers, body = result
            scope["state"]["route"] = ROUTE
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)


def cached_result(job: CachedJob) -> tuple[Headers, bytes] | None:
    """Return headers and body of the response for a job without images, or None for a job that has them.

    The response is built on the first call and kept with the job.
    """
    if job.phase is Phase.SUCCEEDED:
        return None
    if job.result is None:
        body = result_body(job)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), value.encode()) for name, value in warning_headers(job).items()),
        ]
        job.result = headers, body
    return job.result


def result_body(job: CachedJob) -> bytes:
    """Serialise the response of ``GET /results`` with the five fields of the task API, without an image."""
    before, after = _around(job)
    return before + b"null" + after


def around_image(job: CachedJob) -> tuple[bytes, bytes]:
    """Serialise what comes before and after the image, base64, in the response of ``GET /results``."""
    before, after = _around(job)
    return before + b'"', b'"' + after


def _around(job: CachedJob) -> tuple[bytes, bytes]:
    before = (
        b'{"task_id":', _json(job.name),
        b',"status":', _json(STATUS[job.phase]),
        b',"prompt":', _json(job.prompt),
        b',"image_base64":',
    )  # fmt: skip
    return b"".join(before), b',"error_message":' + _json(error_message(job)) + b"}"


def result_body_with_url(job: CachedJob, url: str | None) -> bytes:
    """Serialise the response of ``GET /results?image=url``: a sixth field has the image's URL instead of its bytes."""
    return result_body(job)[:-1] + b',"image_url":' + _json(url) + b"}"


def error_message(job: CachedJob) -> str | None:
    """Say why a job failed; None if it did not."""
    if job.phase is Phase.CANCELLED:
        return f"Cancelled: {job.error_message}" if job.error_message else "Cancelled."
    if job.phase is Phase.FAILED:
        return job.error_message or job.error_code or "Failed."
    return None


def warning_headers(job: CachedJob, of_request: Sequence[str] = ()) -> dict[str, str]:
    """Build the header that carries a job's warnings, such as a prompt that was cut; empty without warnings.

    Args:
        job: The job.
        of_request: Warnings on the request that made it, which its status does not have.
    """
    warnings = [*job.warnings, *of_request]
    if not warnings:
        return {}
    # A header is one line of printable ASCII, and a warning may quote a prompt.
    printable = "".join(letter if letter.isprintable() else " " for letter in "; ".join(warnings))
    text = " ".join(printable.split()).encode("ascii", "backslashreplace").decode()
    return {WARNING_HEADER: text[:MAX_WARNING_LENGTH]}


def _json(value: str | None) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
