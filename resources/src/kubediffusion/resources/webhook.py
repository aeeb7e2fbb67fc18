"""A job's webhook: whom to tell of it and of what, and how far the telling has come."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from kubediffusion.resources.schema import Schema, Time
from kubediffusion.resources.texts import MAX_NOTE, MAX_REASON, cut_to

MAX_URL = 2048
MAX_SECRET_NAME = 253


class WebhookEvent(StrEnum):
    """What a receiver is told of."""

    STARTED = "started"
    """A worker has begun."""
    COMPLETED = "completed"
    """The job has succeeded, failed or been cancelled."""


class WebhookFailureCode(StrEnum):
    """Why an event is not sent any more."""

    GONE = "Gone"
    """The receiver answered 410: it wants no more of this job."""
    REFUSED = "Refused"
    """The address may not be called: it is private, or not https, and its host is not allowed by name."""
    EXPIRED = "Expired"
    """No attempt of a day had success."""


WebhookUrl = Annotated[str, Field(pattern=r"^https?://[^\s/?#@\\]+([/?#][^\s]*)?$", max_length=MAX_URL)]
"""An absolute address without user and password: what is secret in it belongs into the signature."""

SecretName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=MAX_SECRET_NAME)
]

WebhookEvents = Annotated[tuple[WebhookEvent, ...], Field(min_length=1, max_length=len(WebhookEvent))]


class Webhook(Schema):
    """Whom to tell of the job: an address that gets a signed POST for each event (https://www.standardwebhooks.com)."""

    url: WebhookUrl
    """Where the events go. It must be https and public, unless the installation allows its host by name."""
    events: WebhookEvents | None = None
    """What to tell: started, completed; by default completed alone. One that a later one overtakes is not sent."""
    secret_name: SecretName | None = None
    """The Secret of the job's namespace to sign with, one of those that the installation names; by default the first
    of them. Each of its entries is a key (``whsec_…``)."""

    @property
    def wanted_events(self) -> tuple[WebhookEvent, ...]:
        """The events to tell of, the default included."""
        return self.events or (WebhookEvent.COMPLETED,)


class WebhookFailure(Schema):
    """Why an event is not sent any more."""

    code: Annotated[str, cut_to(MAX_REASON)]
    """Gone, Refused or Expired."""
    message: Annotated[str, cut_to(MAX_NOTE)]
    """For people."""


class WebhookStatus(Schema):
    """How far the webhook's delivery has come. Written by the deliverer of webhooks alone."""

    delivered: tuple[WebhookEvent, ...] = ()
    """Events that the receiver has taken: it answered 2xx."""
    event: WebhookEvent | None = None
    """The event that the fields below speak of."""
    attempts: Annotated[int, Field(ge=0)] = 0
    """How often it has been sent."""
    first_attempt_time: Time | None = None
    """When it was sent first: a day later it is given up."""
    last_attempt_time: Time | None = None
    """When it was sent last."""
    next_attempt_time: Time | None = None
    """When it is sent again; absent when it is not."""
    response_status: int | None = None
    """The HTTP status of the last answer; absent where there was none."""
    message: Annotated[str, cut_to(MAX_NOTE)] | None = None
    """Why the last attempt had no success."""
    failure: WebhookFailure | None = None
    """Why it is not sent any more."""
