"""The state of a job as an event carries it, and the events in the format of server-sent events.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple, Self

from fastapi.sse import format_sse_event

from kubediffusion.api import translate
from kubediffusion.api.derived import ResponseModel, view_of
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.schemas import ImageView, JobError, JobView, Waiting
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import Phase

RETRY_MILLISECONDS = 2000
"""When a client should come back whose stream has ended before its job."""

# Neither ends with an empty line, which would end an event: some parsers make one of nothing.
OPENING = f": kubediffusion\nretry: {RETRY_MILLISECONDS}\n".encode()
HEARTBEAT = b": waiting\n"

STATE, END, DELETED, BOOKMARK = "state", "end", "deleted", "bookmark"
"""The types of events."""


NOT_TOLD = {
    "model": "asked for once",
    "prompt": "asked for once",
    "priority": "asked for; whoever may change it knows it",
    "created_at": "never changes",
    "urls": "made of the name and the images",
    "request": "asked for once",
    "parameters": "long, and told by the view",
    "timings": "told by the view, once the job has finished",
}
"""The fields of a job's view that its events have not, and why."""


@view_of(JobView, without=NOT_TOLD)
class JobState(ResponseModel):
    """Where a job stands: the fields of its view that change, named and filled as there."""

    name: str
    phase: Phase
    queue_position: int | None
    waiting: Waiting | None
    progress: str | None
    worker: str | None
    attempt: int
    retries: int
    cancel_requested: bool
    suspended: bool
    images: list[ImageView]
    error: JobError | None
    warnings: list[str]


class EventId(NamedTuple):
    """What a client has been told: the newest resource version, and a digest of the state of a single job.

    It says the same on every replica, since both are of the resource.
    """

    version: int
    digest: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Read a ``Last-Event-ID``; None where it is none of ours."""
        match = re.fullmatch(r"(\d{1,19})(?:-([0-9a-f]{8}))?", text or "", re.ASCII)
        return cls(int(match[1]), int(match[2] or "0", 16)) if match else None

    def __str__(self) -> str:
        return f"{self.version}-{self.digest:08x}" if self.digest else str(self.version)


class EncodedState(NamedTuple):
    """The state of a job as JSON, and its digest, which is never 0."""

    text: str
    digest: int


def encode_state(
    job: CachedJob, queue_position: int | None, model: DiffusionModel | None, root_path: str
) -> EncodedState:
    """Serialise the state of a job; the arguments are those of its view."""
    view = translate.view(job, queue_position, model, root_path)
    # Many clients take more for the end of a line than the format does, such as U+2028.
    text = JobState.model_validate(view).model_dump_json(ensure_ascii=True)
    return EncodedState(text, zlib.crc32(text.encode()) or 1)


def state_event(job: CachedJob, text: str, event_id: EventId) -> bytes:
    """Build the event of a job's state."""
    return format_sse_event(event=END if job.finished else STATE, data_str=text, id=str(event_id))


def deletion_event(name: str, event_id: EventId) -> bytes:
    """Build the event of a job that has been deleted."""
    # A name that exists is one of Kubernetes', with nothing in it to escape.
    return format_sse_event(event=DELETED, data_str=f'{{"name":"{name}"}}', id=str(event_id))


def bookmark_event(event_id: EventId) -> bytes:
    """Build the event that says how far a stream is, though nothing in it has changed."""
    return format_sse_event(event=BOOKMARK, data_str="{}", id=str(event_id))
