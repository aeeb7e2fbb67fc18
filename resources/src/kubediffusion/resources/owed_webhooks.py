"""What a job's receiver is still owed: a function of the job alone, so that no restart of anything loses it."""

from __future__ import annotations

import datetime as dt

from kubediffusion.resources.generation_job import GenerationJobSpec, GenerationJobStatus, Phase
from kubediffusion.resources.transitions import TERMINAL
from kubediffusion.resources.webhook import WebhookEvent, WebhookFailureCode, WebhookStatus


def owed_event(spec: GenerationJobSpec, status: GenerationJobStatus) -> WebhookEvent | None:
    """Return the event that is to be sent of a job; None where there is none.

    It is the last one that has happened: a body shows the job as it is, so that an earlier one would say the same.
    """
    if spec.webhook is None:
        return None
    if status.phase in TERMINAL:
        event = WebhookEvent.COMPLETED
    elif status.phase is Phase.RUNNING:
        event = WebhookEvent.STARTED
    else:
        return None
    told = status.webhook or WebhookStatus()
    if event not in spec.webhook.wanted_events or event in told.delivered:
        return None
    if told.failure is not None and (told.event is event or told.failure.code == WebhookFailureCode.GONE):
        return None
    return event


def held_until(spec: GenerationJobSpec, status: GenerationJobStatus, seconds: int) -> dt.datetime | None:
    """Return until when a finished job stays, whatever its time to live, since its receiver has not been told.

    Args:
        spec: Spec of the job.
        status: Its status.
        seconds: How long after its end it stays at most; 0 where nobody delivers webhooks.

    Returns:
        The moment; None where nothing holds the job.
    """
    if not seconds or status.completion_time is None or owed_event(spec, status) is not WebhookEvent.COMPLETED:
        return None
    try:
        return status.completion_time + dt.timedelta(seconds=seconds)
    except OverflowError:
        return None
