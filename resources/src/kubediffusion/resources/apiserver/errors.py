"""Why a request to the API server failed, as exceptions by HTTP status; 0 where nothing answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kubediffusion.resources.apiserver import deep_json
from kubediffusion.resources.redaction import Redactor

LONGEST_RETRY_AFTER = 60.0
"""Seconds for which a server is believed that asks not to be asked again: a page of a proxy may name days."""


class KubernetesError(Exception):
    """The API server refused a request, or could not be reached.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: Kubernetes' machine-readable reason, for example ``AlreadyExists``.
        message: The server's explanation, for people.
        details: The ``details`` of the server's Status object (fields that were refused, for example).
        retry_after: Seconds after which the server asks to be tried again, if it says.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details or {}
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in {0, 408, 429} or self.status >= 500

    @property
    def webhook_failed(self) -> bool:
        """Whether an admission webhook of the cluster did not answer: a 500 that only its owner can mend."""
        return self.status == 500 and "failed calling webhook" in self.message


class NotFoundError(KubernetesError):
    """404: there is no such object."""


class ConflictError(KubernetesError):
    """409: it exists already, or the object has changed since it was read."""


class InvalidError(KubernetesError):
    """400 or 422: the object or patch is refused, a failed JSON Patch ``test`` included."""


class ForbiddenError(KubernetesError):
    """403: not permitted, by RBAC or by an admission policy."""


class GoneError(KubernetesError):
    """410: the resource version is too old to watch from; list again."""


_BY_STATUS: dict[int, type[KubernetesError]] = {
    400: InvalidError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
}


def error_from_status(status: int, body: Mapping[str, Any], retry_after: str | None = None) -> KubernetesError:
    """Make the error of a ``Status`` object of the API server.

    Args:
        status: HTTP status.
        body: The ``Status`` object.
        retry_after: The ``Retry-After`` header; only seconds count, not dates.
    """
    details = body.get("details")
    details = details if isinstance(details, dict) else {}
    # A proxy on the way may quote the request, and these words reach answers, probes and statuses.
    message = Redactor(()).redact(_text(body.get("message")))
    seconds = _seconds(details.get("retryAfterSeconds")) or _seconds(retry_after)
    error = _BY_STATUS.get(status, KubernetesError)
    return error(status, _text(body.get("reason")), message, details, seconds)


def _text(value: object) -> str:
    """Return a text as it is, nothing as an empty one, and what else somebody may have put in its place as JSON."""
    return value if isinstance(value, str) else json.dumps(value)[:1000] if value else ""


def _seconds(value: object) -> float | None:
    """Return how many seconds a server asks for, at most a minute; None where it does not, or names a date."""
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return min(seconds, LONGEST_RETRY_AFTER) if seconds > 0 else None  # NaN is not


def error_from_answer(status: int, data: bytes, retry_after: str | None = None) -> KubernetesError:
    """Make the error of an answer whose body should be a ``Status`` object: a proxy's page is kept as its message.

    Args:
        status: HTTP status.
        data: The body; of one that is no JSON object the first 1,000 characters are kept.
        retry_after: The ``Retry-After`` header.
    """
    try:
        body = deep_json.loads(data)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {"message": data.decode(errors="replace")[:1000]}
    return error_from_status(status, body, retry_after)
