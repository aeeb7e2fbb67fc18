"""Every way a request can fail, and the response to each. The doors for other APIs' clients give it another form."""

from __future__ import annotations

import difflib
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match

from kubediffusion.api.derived import model_at
from kubediffusion.api.schemas import JobRequest
from kubediffusion.resources.apiserver.errors import ConflictError, ForbiddenError, InvalidError, KubernetesError
from kubediffusion.resources.storage import StorageError

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2
"""When to try again where nobody knows better."""

_DENIED = re.compile(r"\bdenied (the )?request\b")
"""An admission policy or a webhook says no to the object, with a status that its owner chose: a policy with 403, 413 or
422, a webhook with any. What says no to us (authentication, RBAC) words it otherwise."""

Problem = dict[str, Any]
"""One entry of a 422's ``detail``: ``loc``, ``msg`` and ``type``, as FastAPI has it."""


class ApiError(Exception):
    """A request cannot be answered as asked.

    Attributes:
        status: HTTP status of the response.
        detail: What the client reads: a sentence, or the problems of a 422.
        headers: Headers of the response.
        code: A word for programs, where the response has a place for one.
    """

    status = 500

    def __init__(
        self, detail: str | list[Problem], headers: Mapping[str, str] | None = None, code: str | None = None
    ) -> None:
        super().__init__(str(detail))
        self.detail = detail
        self.headers = dict(headers or {})
        self.code = code


ErrorForm = Callable[[ApiError], tuple[int, dict[str, Any]]]
"""Returns status and body of an error as the clients of one door read them."""


def own_form(error: ApiError) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error as FastAPI has them."""
    return error.status, {"detail": error.detail}


class ErrorForms:
    """The form of each error, which the request's path decides: most errors come up before a route is found.

    Args:
        by_prefix: Forms for the paths that begin so; all others have the API's own.
    """

    def __init__(self, by_prefix: Mapping[str, ErrorForm]) -> None:
        self._by_prefix = dict(by_prefix)

    def response(self, error: ApiError, path: str) -> Response:
        """Build the response to a request of this path."""
        form = next((form for prefix, form in self._by_prefix.items() if path.startswith(prefix)), own_form)
        status, body = form(error)
        return JSONResponse(body, status_code=status, headers=error.headers)


class UnauthorizedError(ApiError):
    """401: no API key."""

    status = 401


class WrongKeyError(ApiError):
    """403: the API key is not one of this server's."""

    status = 403


class TaskNotFoundError(ApiError):
    """404: there is no such job."""

    status = 404

    def __init__(self) -> None:
        super().__init__("Task ID not found.")


class ModelNotFoundError(ApiError):
    """404: there is no model of this name."""

    status = 404


class ImageNotFoundError(ApiError):
    """404: the job has no such image."""

    status = 404


class PreviewNotFoundError(ApiError):
    """404: there is no preview.

    Args:
        detail: Why.
        later: Whether there may be one soon.
    """

    status = 404

    def __init__(self, detail: str, *, later: bool = False) -> None:
        super().__init__(detail, {"Retry-After": "1"} if later else None)


class StateConflictError(ApiError):
    """409: the job's state does not allow it."""

    status = 409


class JobGoneError(ApiError):
    """410: the job, which the client has followed, has been deleted."""

    status = 410


class ImageGoneError(ApiError):
    """410: the image has been deleted from storage."""

    status = 410


class TooLargeError(ApiError):
    """413: the body of the request is too large."""

    status = 413


class InvalidRequestError(ApiError):
    """422: fields of the request are refused."""

    status = 422

    def __init__(self, problems: Iterable[Problem]) -> None:
        super().__init__(list(problems))


class RefusedJobsError(InvalidRequestError):
    """422: some of the jobs of a request are refused, so that none was created.

    Args:
        errors: Why, by the jobs' places in the request.
    """

    def __init__(self, errors: Mapping[int, InvalidRequestError]) -> None:
        super().__init__(_in_list(entry, place) for place, error in errors.items() for entry in error.detail)


def _in_list(entry: Any, place: int) -> Problem:
    where, *field = entry["loc"]
    if where == "body":
        return {**entry, "loc": [where, "jobs", place, *field]}
    return {**entry, "msg": f"Job {place} of the list: {entry['msg']}"}


class ClientGoneError(ApiError):
    """499: the client has closed the connection while it waited. Nobody reads the response; the metrics count it."""

    status = 499

    def __init__(self) -> None:
        super().__init__("The client has gone.")


class TooManyRequestsError(ApiError):
    """429: over a limit.

    Args:
        detail: Which limit.
        retry_after: Seconds after which it may be tried again.
    """

    status = 429

    def __init__(self, detail: str, retry_after: int = RETRY_AFTER_SECONDS) -> None:
        super().__init__(detail, {"Retry-After": str(retry_after)})

    @classmethod
    def until(cls, detail: str, moment: float) -> TooManyRequestsError:
        """Build an error that ends at ``moment``, in seconds since the epoch."""
        return cls(detail, max(1, math.ceil(moment - time.time())))


class NotOfferedError(ApiError):
    """501: the door's clients know an operation that this server does not have; the detail says what to do instead."""

    status = 501


class CorruptImageError(ApiError):
    """502: storage gave other bytes than the worker stored."""

    status = 502


class UnavailableError(ApiError):
    """503: a part that is needed is away for now.

    Args:
        detail: Which, and why.
        retry_after: Seconds after which it may be back.
    """

    status = 503

    def __init__(self, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail, {"Retry-After": str(math.ceil(retry_after or RETRY_AFTER_SECONDS))})


def problem(field: str | None, message: str, kind: str = "value_error", where: str = "body") -> Problem:
    """Describe one refused field; the whole body where it is None."""
    return {"loc": [where] if field is None else [where, field], "msg": message, "type": kind}


def from_kubernetes(error: KubernetesError) -> ApiError:
    """Translate a refusal of the API server for a client."""
    match error:
        case InvalidError() | ForbiddenError() if "failed to configure policy" in error.message:
            # An API server that has just started and does not know the policy's resources yet; no fault of the job.
            return UnavailableError("The Kubernetes API server is starting; try again shortly.", 5)
        case InvalidError():
            return InvalidRequestError(_problems_of(error))
        case ForbiddenError() if "exceeded quota" in error.message:
            # The tenant's quota of jobs: like our own cap, it has room again when jobs finish and are deleted.
            return TooManyRequestsError(f"The namespace's quota is used up: {error.message}", 10)
        case _ if 400 <= error.status < 500 and _DENIED.search(error.message):
            # A rule that somebody has for such jobs: the same one would be refused again.
            return InvalidRequestError(_problems_of(error))
        case ConflictError():
            return StateConflictError(f"The job has changed meanwhile: {error.message}")
        case _ if error.status in {0, 408, 429} or error.status >= 500:
            # Also where a webhook cannot be called, or fails itself: that is no fault of the job, and passes when the
            # webhook is back. Its name and address are for the log.
            return UnavailableError("The Kubernetes API server is not available; try again shortly.", error.retry_after)
        case _:
            # Our own installation is at fault (a missing role, namespace or CRD), and only the operator can help.
            return UnavailableError(f"The Kubernetes API server refuses this service: {error.message}", 10)


def from_storage(error: StorageError) -> ApiError:
    """Translate a failure of storage for a client."""
    if error.missing:
        return ImageGoneError("The image has been deleted from storage.")
    # The error names buckets and addresses: that is for the log.
    return UnavailableError("Image storage is not available; try again shortly.")


def _problems_of(error: KubernetesError) -> list[Problem]:
    causes: Sequence[Mapping[str, str]] = error.details.get("causes") or [{"message": error.message}]
    return [_problem_of(cause.get("field", ""), cause.get("message", "")) for cause in causes]


def _problem_of(field: str, message: str) -> Problem:
    # An admission policy has no field to name, and says it in its message instead.
    match = re.match(r"spec\.(\w+)", field) or re.search(r"\bspec\.(\w+)", message)
    return problem(_snake(match[1]) if match else None, message, "refused_by_kubernetes")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def nearest_field(name: str, known: Iterable[str]) -> str | None:
    """Return the field that a mistyped name most likely means, or None."""
    names = list(known)
    spelled = _snake(name)
    close = difflib.get_close_matches(spelled, names, n=1)
    # ``steps`` is far from ``num_inference_steps`` by letters, and yet there is no doubt.
    return next(iter(close), None) or next((known for known in names if spelled in known.split("_")), None)


def validation_problems(errors: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """Translate pydantic's errors for clients: values are not echoed, and a mistyped field gets a suggestion."""
    return [_validation_problem(error) for error in errors]


def _validation_problem(error: Mapping[str, Any]) -> Problem:
    loc, message = list(error["loc"]), error["msg"]
    match error["type"]:
        case "extra_forbidden":
            # The fields of one job of several are those of a job.
            path = loc[3:-1] if loc[1] == "jobs" and len(loc) > 3 else loc[1:-1]
            name, fields = str(loc[-1]), model_at(JobRequest, map(str, path)).model_fields
            nearest = None if name in fields else nearest_field(name, fields)
            message = f"Unknown field {name[:100]!r}" + (f"; did you mean {nearest!r}?" if nearest else "")
        case "json_invalid":
            loc = ["body"]
            message = f"The body is not valid JSON: {error['ctx']['error']}"
        case "model_attributes_type" if len(loc) > 1:
            message = "Input should be an object"
        case "model_attributes_type":
            message = "The body must be a JSON object, sent with Content-Type: application/json"
        case "finite_number":
            message = "Input should be a finite number, not NaN or Infinity"
    # A mistyped name comes from the client, and may be as long as a body.
    return {"loc": [part if isinstance(part, int) else part[:100] for part in loc], "msg": message,
            "type": error["type"]}  # fmt: skip


def install(app: FastAPI, forms: ErrorForms, routes: Sequence[BaseRoute]) -> None:
    """Register the handlers of all errors with an app.

    Args:
        app: The app.
        forms: The form of each error.
        routes: All that the app has, for the methods of a path.
    """

    async def handle(request: Request, error: Exception) -> Response:
        answer = api_error(error)
        if answer.status == 405:
            answer.headers["Allow"] = ", ".join(_allowed_methods(request, routes))
        return forms.response(answer, request.scope["path"])

    for kind in (ApiError, KubernetesError, StorageError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


def _allowed_methods(request: Request, routes: Iterable[BaseRoute]) -> list[str]:
    """List what a path may be asked for with: Starlette knows it of the first route of the path alone.

    What is mounted, as the page's files, is none of the routes and may be read.
    """
    found = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    methods = {method for route in found for method in getattr(route, "methods", None) or ()}
    methods = methods or {"GET"}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def api_error(error: Exception) -> ApiError:
    """Return what a client reads of an error, and log what only an operator of this server can mend.

    Raises:
        TypeError: It is no error that a client could have met.
    """
    match error:
        case ApiError():
            return error
        case KubernetesError():
            answer = from_kubernetes(error)
            if answer.status >= 500:
                logger.warning("API server: %s", error)
            return answer
        case StorageError():
            logger.warning("storage: %s", error)
            return from_storage(error)
        case RequestValidationError():
            return InvalidRequestError(validation_problems(error.errors()))
        case HTTPException():
            answer = ApiError(error.detail, error.headers)
            answer.status = error.status_code
            return answer
    raise TypeError(f"no handler is registered for {type(error).__name__}") from error
