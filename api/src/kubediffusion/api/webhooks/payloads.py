"""What a receiver gets of a job: the job as ``GET /v1/jobs/{name}`` shows it, or a prediction. Pure."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

from kubediffusion.api import translate
from kubediffusion.api.doors.replicate.translate import prediction_view, version_id
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.resources import meta
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.schema import format_time
from kubediffusion.resources.webhook import WebhookEvent

_PREDICTIONS_URL = re.compile(r"https?://[^\s?#@\\]{1,500}")


def message_id(job_uid: str, event: WebhookEvent) -> str:
    """Return the id of a message: the same for every attempt, by whichever replica."""
    return f"{job_uid}-{event}"


def predictions_url(job: GenerationJob) -> str | None:
    """Return the address of predictions for a job that was asked for as one; None for another job."""
    url = job.metadata.annotations.get(meta.PREDICTIONS_URL_ANNOTATION, "")
    return url if _PREDICTIONS_URL.fullmatch(url) else None


def event_payload(job: CachedJob, whole: GenerationJob, event: WebhookEvent, root_path: str) -> dict[str, Any]:
    """Build the message of an event: its type, when it happened, and the job as it is.

    Args:
        job: The job.
        whole: The same, parsed.
        event: What happened.
        root_path: The prefix that the API is served under.
    """
    status = whole.status
    moment = status.completion_time if event is WebhookEvent.COMPLETED else status.start_time
    # How the telling itself goes is left out: it would be another with each attempt.
    view = translate.view(job, None, None, root_path).model_copy(update={"webhook": None})
    return {
        "type": f"job.{event}",
        "timestamp": format_time(moment or dt.datetime.fromtimestamp(job.created, dt.UTC)),
        "data": view.model_dump(mode="json"),
    }


def prediction_payload(job: CachedJob, whole: GenerationJob, model: DiffusionModel | None, url: str) -> dict[str, Any]:
    """Build the message of a prediction: the prediction, as it is read at that door.

    Args:
        job: The job.
        whole: The same, parsed.
        model: Its model; None where that is gone.
        url: Address of predictions as the client has it.
    """
    ran = whole.status.parameters
    name = ran.model if ran else job.model or (model.name if model else "")
    version = version_id(model) if model else None
    view = prediction_view(job, whole, f"{whole.metadata.namespace}/{name}", version, url)
    return view.model_dump(mode="json")


def serialised(payload: dict[str, Any]) -> str:
    """Write a message as JSON: what is signed is this text."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
