"""What an attempt leaves in a job's status, and when the next one is due. No I/O."""

from __future__ import annotations

import datetime as dt
import random

from kubediffusion.api.webhooks.sender import Answer
from kubediffusion.resources.backoff import pause_after
from kubediffusion.resources.webhook import WebhookEvent, WebhookFailure, WebhookFailureCode, WebhookStatus

FIRST_PAUSE = 5.0
"""Seconds after the first failure; each pause is twice as long as the one before."""

LONGEST_PAUSE = 4 * 3600.0

RETRY_SECONDS = 24 * 3600.0
"""How long after the first attempt an event is sent again."""

GONE = 410


def status_after(
    before: WebhookStatus | None,
    event: WebhookEvent,
    answer: Answer,
    now: dt.datetime,
    retry_seconds: float = RETRY_SECONDS,
) -> WebhookStatus:
    """Return how far the delivery has come after an attempt.

    Args:
        before: How far it had come; None where nothing was sent.
        event: What was sent.
        answer: What became of it.
        now: When.
        retry_seconds: How long after the first attempt an event is sent again.
    """
    known = before or WebhookStatus()
    again = known.event is event
    attempts = (known.attempts if again else 0) + 1
    first = (known.first_attempt_time if again else None) or now
    delivered = known.delivered
    failure, due = None, None
    if answer.problem is None:
        delivered = (*delivered, event)
    elif answer.refused:
        failure = WebhookFailure(code=WebhookFailureCode.REFUSED, message=answer.problem)
    elif answer.status == GONE:
        failure = WebhookFailure(code=WebhookFailureCode.GONE, message="the receiver answered 410: it wants no more")
    else:
        end = first + dt.timedelta(seconds=retry_seconds)
        if now < end:
            # Shortened at random, so that receivers that were away are not met by all at once.
            pause = pause_after(attempts, FIRST_PAUSE, LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311
            pause = max(pause, min(answer.retry_after or 0.0, retry_seconds))
            due = min(now + dt.timedelta(seconds=pause), end)
        else:
            message = f"it was sent {attempts} times since {first:%Y-%m-%dT%H:%M:%SZ} without success"
            failure = WebhookFailure(code=WebhookFailureCode.EXPIRED, message=f"{message}; last: {answer.problem}")
    return WebhookStatus(
        delivered=delivered,
        event=event,
        attempts=attempts,
        first_attempt_time=first,
        last_attempt_time=now,
        next_attempt_time=due,
        response_status=answer.status,
        message=answer.problem,
        failure=failure,
    )


def due_time(known: WebhookStatus | None, event: WebhookEvent) -> dt.datetime | None:
    """Return when an event that is owed is to be sent; None for at once."""
    return known.next_attempt_time if known is not None and known.event is event else None
