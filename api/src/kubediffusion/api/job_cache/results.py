"""The task API's view of a job: its status word and the JSON of ``GET /results``.

Polling is most of the traffic, and most polls find a job that has not finished. Their answer is made once a change of
state, and kept as bytes.
"""

from __future__ import annotations

import base64
import json
from typing import Literal

from kubediffusion.api.job_cache.records import CachedJob
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

WARNING_HEADER = "X-KubeDiffusion-Warning"
MAX_WARNING_LENGTH = 1000

Headers = list[tuple[bytes, bytes]]


def error_message(entry: CachedJob) -> str | None:
    """Say why a job failed, or None if it did not."""
    if entry.phase is Phase.CANCELLED:
        return f"Cancelled: {entry.error_message}" if entry.error_message else "Cancelled."
    if entry.phase is Phase.FAILED:
        return entry.error_message or entry.error_code or "Failed."
    return None


def warning_headers(entry: CachedJob) -> dict[str, str]:
    """Give the header that carries a job's warnings, such as a prompt that was cut."""
    if not entry.warnings:
        return {}
    # A header is one line of printable ASCII, and a warning may quote a prompt.
    printable = "".join(letter if letter.isprintable() else " " for letter in "; ".join(entry.warnings))
    text = " ".join(printable.split()).encode("ascii", "backslashreplace").decode()
    return {WARNING_HEADER: text[:MAX_WARNING_LENGTH]}


def cached_result(entry: CachedJob) -> tuple[Headers, bytes] | None:
    """Give headers and body of the answer for a job that has no image to hand out, or None for one that has.

    It is made on the first call and kept with the entry.
    """
    if entry.phase is Phase.SUCCEEDED:
        return None
    if entry.answer is None:
        body = result_body(entry)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), value.encode()) for name, value in warning_headers(entry).items()),
        ]
        entry.answer = headers, body
    return entry.answer


def result_body(entry: CachedJob, image: bytes | None = None) -> bytes:
    """Write the answer of ``GET /results`` with the task API's five fields.

    Args:
        entry: The job.
        image: The PNG of a completed job.
    """
    # The image is spliced in: as a Python string it would be copied and scanned for characters to escape.
    encoded = b'"' + base64.b64encode(image) + b'"' if image is not None else b"null"
    return b"".join(
        (
            b'{"task_id":', _json(entry.name),
            b',"status":', _json(STATUS[entry.phase]),
            b',"prompt":', _json(entry.prompt),
            b',"image_base64":', encoded,
            b',"error_message":', _json(error_message(entry)),
            b"}",
        )
    )  # fmt: skip


def result_body_with_url(entry: CachedJob, url: str | None) -> bytes:
    """Write the answer of ``GET /results?image=url``: a sixth field names the image, and the bytes are left out."""
    return result_body(entry)[:-1] + b',"image_url":' + _json(url) + b"}"


def _json(value: str | None) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
