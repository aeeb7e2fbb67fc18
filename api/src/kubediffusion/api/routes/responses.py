"""The error responses that routes declare in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from kubediffusion.api.derived import ResponseModel
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


def errors_in_form(model: type[ResponseModel], descriptions: Mapping[int, str], statuses: Iterable[int]) -> Responses:
    """Return the declarations of these statuses, and of a wrong key, for a route whose errors have a door's form.

    Args:
        model: The body of an error.
        descriptions: What statuses mean at the door, where they mean something else than elsewhere.
        statuses: The statuses.
    """
    return {
        status: {
            **_ALL.get(status, {}),
            "model": model,
            "description": descriptions.get(status) or _ALL[status]["description"],
        }
        for status in sorted({401, *statuses})
    }


_NULL = {"type": "null"}


def request_body(
    model: type[BaseModel],
    media_type: str,
    files: Mapping[str, str] | None = None,
    optional_files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Declare the body of a route that reads it by itself, since FastAPI would keep it until the response has ended.

    Args:
        model: What the body is.
        media_type: Its form.
        files: Descriptions of the files that a form has beside the model's fields.
        optional_files: Those of files that it may have.
    """
    schema = model.model_json_schema()
    for name, description in {**(files or {}), **(optional_files or {})}.items():
        schema["properties"][name] = {"type": "string", "format": "binary", "description": description}
    schema["required"] = [*schema.get("required", ()), *(files or ())]
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        # What a model's own schema refers to is not among the document's.
        if isinstance(node, dict):
            if "$ref" in node:
                return whole(parts[node["$ref"].rsplit("/", 1)[-1]])
            if files and _NULL in node.get("anyOf", ()):
                # A form has no null.
                kinds = [kind for kind in node["anyOf"] if kind != _NULL]
                others = {key: value for key, value in node.items() if key not in {"anyOf", "default"}}
                node = {**others, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})}
            return {key: whole(value) for key, value in node.items()} if "$ref" not in node else whole(node)
        return [whole(each) for each in node] if isinstance(node, list) else node

    return {"requestBody": {"required": True, "content": {media_type: {"schema": whole(schema)}}}}


def links(parameter: str, value: str, *operations: str, of_request: Iterable[str] = ()) -> dict[str, Any]:
    """Declare that a response has what these operations take.

    Args:
        parameter: The operations' parameter.
        value: Where it is in the response's body, as a JSON pointer.
        operations: Their ids in the document.
        of_request: Their parameters that are those of the request's path.
    """
    parameters = {
        parameter: f"$response.body#{value}",
        **{name: f"$request.path.{name}" for name in of_request},
    }
    return {operation: {"operationId": operation, "parameters": parameters} for operation in operations}


def errors(*statuses: int) -> Responses:
    """Return the declarations of these statuses, and of those that every route with a key has."""
    return {status: _ALL[status] for status in sorted({401, 403, *statuses})}
