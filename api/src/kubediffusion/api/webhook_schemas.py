"""What clients send and get of a job's webhook."""

from __future__ import annotations

from kubediffusion.api.derived import RequestModel, ResponseModel, described, request_of, view_of
from kubediffusion.resources import webhook
from kubediffusion.resources.webhook import WebhookEvent


@request_of(
    webhook.Webhook,
    documented={
        "url": described(
            "Where each event is sent, by POST: https and public, unless the installation allows its host by name.",
            example="https://example.com/hooks/images",
        ),
        "events": described(
            "What to tell; ``completed`` alone when absent. One that a later one overtakes is not sent.",
            example=[WebhookEvent.COMPLETED],
        ),
        "secret_name": described(
            "The Secret to sign with, one of those that the installation names; the first of them when absent."
        ),
    },
)
class Webhook(RequestModel):
    """Whom to tell of the job, signed as https://www.standardwebhooks.com says."""


@view_of(webhook.WebhookFailure)
class WebhookFailureView(ResponseModel):
    """Why an event is not sent any more."""


@view_of(webhook.WebhookStatus, parts={webhook.WebhookFailure: WebhookFailureView})
class WebhookStatusView(ResponseModel):
    """How far the webhook's delivery has come."""
