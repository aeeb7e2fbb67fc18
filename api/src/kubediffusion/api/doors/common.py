"""What the doors share: a job's fields by a door's names, a job that failed, a document around images. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kubediffusion.api.errors import ApiError, InvalidRequestError, Problem, validation_problems
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.job_cache.results import error_message
from kubediffusion.api.schemas import JobRequest
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import Phase

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], body: object) -> Model:
    """Build a door's request from a body that no route's parameter has been validated by.

    Raises:
        InvalidRequestError: It is not valid; the fields are named.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _refused(error) from None


def _refused(error: ValidationError) -> InvalidRequestError:
    found = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors()]
    return InvalidRequestError(validation_problems(found))


@dataclass(frozen=True)
class FieldNames:
    """How a door's clients call the fields of a job.

    Attributes:
        names: The fields that have another name there, by their own; dots lead into objects.
        within: The object of the body that holds them; None where the body does.
        outside: The fields that the body itself holds all the same.
    """

    names: Mapping[str, str]
    within: str | None = None
    outside: frozenset[str] = frozenset()

    def job_request(self, fields: Mapping[str, Any]) -> JobRequest:
        """Build the request of a job from its fields by their own names.

        Raises:
            InvalidRequestError: A field has a value that cannot be had; it is named as the client sent it.
        """
        try:
            return JobRequest.model_validate(fields)
        except ValidationError as error:
            raise self.renamed(_refused(error)) from None

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Have what is refused meanwhile name its fields as the client sent them.

        Raises:
            InvalidRequestError: A field has a value that cannot be had.
        """
        try:
            yield
        except InvalidRequestError as error:
            raise self.renamed(error) from None

    def renamed(self, error: InvalidRequestError) -> InvalidRequestError:
        """Return the error of a refused job with the fields named as the client sent them."""
        return InvalidRequestError(map(self._renamed, error.detail if isinstance(error.detail, list) else []))

    def _renamed(self, problem: Problem) -> Problem:
        where, *field = problem["loc"]
        if where != "body" or not field:
            return problem
        own, *rest = field
        within = [] if self.within is None or own in self.outside else [self.within]
        return {**problem, "loc": [where, *within, *self.names.get(str(own), str(own)).split("."), *rest]}


DO_NOT_RETRY = {"x-should-retry": "false"}
"""Keeps OpenAI's clients from sending a request again that failed with 500 or above."""


class JobFailedError(ApiError):
    """A job has ended without images.

    Clients of OpenAI's would send a request again that ended with 500, and have the same failure drawn three times
    over: the header ``x-should-retry`` keeps them from it.

    Args:
        job: The job.
    """

    status = 500

    def __init__(self, job: CachedJob) -> None:
        code = "Cancelled" if job.phase is Phase.CANCELLED else job.error_code
        super().__init__(error_message(job) or "Failed.", DO_NOT_RETRY, code)
        if code == ErrorCode.INVALID_SPEC:
            self.status = 400
        elif code == ErrorCode.DEADLINE_EXCEEDED:
            self.status = 504


def around_images(fields: Mapping[str, Any], name: str, count: int, before: str = '"', after: str = '"') -> list[bytes]:
    """Serialise an object whose last field is a list of images in base64, without the images.

    Args:
        fields: The other fields; there is at least one.
        name: The name of the list.
        count: How many images there are, at least one.
        before: What JSON has before each image's base64.
        after: What it has after it.

    Returns:
        What comes before the first image's base64, between each two, and after the last.
    """
    return [
        f"{json.dumps(fields)[:-1]},{json.dumps(name)}:[{before}".encode(),
        *([f"{after},{before}".encode()] * (count - 1)),
        f"{after}]}}".encode(),
    ]
