"""An answer of the API server becomes one class of error, and the class says what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kubediffusion.resources.apiserver.errors import (
    LONGEST_RETRY_AFTER,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    KubernetesError,
    NotFoundError,
    error_from_answer,
    error_from_status,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, ConflictError),
        (410, GoneError),
        (422, InvalidError),
        (429, KubernetesError),
        (503, KubernetesError),
    ],
)
def test_each_refusal_has_its_class(status: int, kind: type[KubernetesError]) -> None:
    assert type(error_from_status(status, {})) is kind


@pytest.mark.parametrize("status", [0, 408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_transient(status: int) -> None:
    assert error_from_status(status, {}).transient


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422])
def test_what_will_not_pass_is_not(status: int) -> None:
    assert not error_from_status(status, {}).transient


def test_the_servers_words_are_kept() -> None:
    body = {"reason": "AlreadyExists", "message": 'jobs "x" already exists', "details": {"name": "x"}}
    error = error_from_status(409, body)
    assert (error.reason, error.message, error.details) == ("AlreadyExists", 'jobs "x" already exists', {"name": "x"})
    assert str(error) == '409 AlreadyExists: jobs "x" already exists'


@pytest.mark.parametrize(
    ("body", "header", "seconds"),
    [
        ({"details": {"retryAfterSeconds": 3}}, None, 3),
        ({}, "7", 7),
        ({"details": {"retryAfterSeconds": 3}}, "7", 3),
        ({}, "Wed, 21 Oct 2030 07:28:00 GMT", None),
        ({}, None, None),
        ({"details": None}, None, None),
        # A proxy's words for it.
        ({}, "86400", LONGEST_RETRY_AFTER),
        ({}, "0", None),
        ({}, "-3", None),
        ({}, "²", None),
        ({}, "nan", None),
        ({"details": {"retryAfterSeconds": "soon"}}, None, None),
        ({"details": {"retryAfterSeconds": 10**9}}, None, LONGEST_RETRY_AFTER),
        ({"details": ["retryAfterSeconds"]}, "7", 7),
    ],
)
def test_the_server_may_say_when_to_come_back(body: dict[str, Any], header: str | None, seconds: int | None) -> None:
    assert error_from_status(429, body, header).retry_after == seconds


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"message": {"title": "Bad gateway"}}, '{"title": "Bad gateway"}'),
        ({"message": ["a", "b"], "reason": 3}, '["a", "b"]'),
        ({"message": None, "reason": None}, ""),
        ({"error": {"code": 502}}, ""),
    ],
)
def test_an_object_that_is_none_of_kubernetes_is_still_an_error(body: dict[str, Any], message: str) -> None:
    error = error_from_answer(502, json.dumps(body).encode())
    assert error.transient
    assert error.message == message
    assert isinstance(error.reason, str)


def test_a_webhook_that_does_not_answer_is_told_apart() -> None:
    failed = 'Internal error occurred: failed calling webhook "a.example.com": context deadline exceeded'
    assert error_from_status(500, {"message": failed}).webhook_failed
    assert not error_from_status(500, {"message": "Internal error occurred: etcd timed out"}).webhook_failed
    assert not error_from_status(
        403, {"message": 'admission webhook "a.example.com" denied the request'}
    ).webhook_failed


@pytest.mark.parametrize("answer", [b"", b"upstream is down", b"[]", b'"text"', b"\xff\xfe"])
def test_an_answer_that_is_no_status_object_is_still_an_error_with_its_text(answer: bytes) -> None:
    error = error_from_answer(502, answer)
    assert error.transient
    assert error.message == answer.decode(errors="replace")
