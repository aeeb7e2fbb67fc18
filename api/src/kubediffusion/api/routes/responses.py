"""The error responses that routes declare in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kubediffusion.api.a1111_schemas import A1111ErrorBody
from kubediffusion.api.derived import ResponseModel
from kubediffusion.api.openai_schemas import OpenAIErrorBody
from kubediffusion.api.replicate_schemas import ReplicateErrorBody
from kubediffusion.api.schemas import ErrorBody, ValidationBody

Responses = dict[int | str, dict[str, Any]]

_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}

_ALL: Responses = {
    401: {"model": ErrorBody, "description": "An API key is needed."},
    403: {"model": ErrorBody, "description": "The API key is not valid."},
    404: {"model": ErrorBody, "description": "There is no such task, or no such image."},
    409: {"model": ErrorBody, "description": "The job's state does not allow it."},
    410: {
        "model": ErrorBody,
        "description": "The image has been deleted from storage; or the job that was followed has been.",
    },
    413: {"model": ErrorBody, "description": "The request body is too large."},
    422: {"model": ValidationBody, "description": "The request is not valid; each problem names its field."},
    429: {"model": ErrorBody, "description": "Over a limit; try again later.", "headers": _RETRY_AFTER},
    502: {"model": ErrorBody, "description": "The stored image is not the one that was generated."},
    503: {
        "model": ErrorBody,
        "description": "The model, the Kubernetes API server or storage is not available; try again later.",
        "headers": _RETRY_AFTER,
    },
}


_OPENAI_WORDS = {
    400: "The request is not valid.",
    401: "An API key is needed, or it is not valid.",
    404: "There is no such model.",
    500: "The job failed; `code` says how.",
    504: "The job did not end in time.",
}

_A1111_WORDS = {
    **_OPENAI_WORDS,
    500: "The job failed; `error` says how.",
    501: "This server does not have it; `detail` says what to do instead.",
}

_REPLICATE_WORDS = {
    401: "An API key is needed, or it is not valid.",
    404: "There is no such prediction, model, version or image.",
}


def openai_errors(*statuses: int) -> Responses:
    """Return the declarations of these statuses, and of a wrong key, for a route whose errors have OpenAI's form."""
    return _in_form(OpenAIErrorBody, _OPENAI_WORDS, statuses)


def replicate_errors(*statuses: int) -> Responses:
    """Return the declarations of these statuses, and of a wrong key, for a route whose errors have Replicate's form."""
    return _in_form(ReplicateErrorBody, _REPLICATE_WORDS, statuses)


def a1111_errors(*statuses: int) -> Responses:
    """Return the declarations of these statuses, and of a wrong key, for a route whose errors are the web UI's."""
    return _in_form(A1111ErrorBody, _A1111_WORDS, statuses)


def _in_form(model: type[ResponseModel], words: Mapping[int, str], statuses: Iterable[int]) -> Responses:
    return {
        status: {
            **_ALL.get(status, {}),
            "model": model,
            "description": words.get(status) or _ALL[status]["description"],
        }
        for status in sorted({401, *statuses})
    }


def errors(*statuses: int) -> Responses:
    """Return the declarations of these statuses, and of those that every route with a key has."""
    return {status: _ALL[status] for status in sorted({401, 403, *statuses})}
