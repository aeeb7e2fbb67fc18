"""Which of the API server's answers is a refusal, of which people are told."""

from __future__ import annotations

import pytest

from kubediffusion.operator.cluster import NameTakenError
from kubediffusion.operator.worker_executor import is_refusal
from kubediffusion.resources.apiserver.errors import KubernetesError, error_from_status


def answer(status: int, reason: str, message: str) -> KubernetesError:
    return error_from_status(status, {"reason": reason, "message": message})


def label(error: object) -> str:
    assert isinstance(error, KubernetesError)
    return f"{error.status}-{error.reason}-{type(error).__name__}"


@pytest.mark.parametrize(
    "error",
    [
        answer(403, "Forbidden", "exceeded quota: gpus"),
        answer(422, "Invalid", "spec.template is invalid"),
        NameTakenError(409, "AlreadyExists", "taken"),
        answer(500, "InternalError", 'Internal error occurred: failed calling webhook "a.example.com": EOF'),
    ],
    ids=label,
)
def test_what_stays_until_somebody_acts_is_a_refusal(error: KubernetesError) -> None:
    assert is_refusal(error)


@pytest.mark.parametrize(
    "error",
    [
        KubernetesError(0, "Unreachable", "the API server does not answer"),
        answer(429, "TooManyRequests", "too many requests"),
        answer(500, "InternalError", "etcdserver: request timed out"),
        answer(503, "ServiceUnavailable", "the server is going down"),
        answer(409, "Conflict", "Operation cannot be fulfilled on resourcequotas: the object has been modified"),
        answer(409, "AlreadyExists", "it has gone since"),
    ],
    ids=label,
)
def test_what_goes_by_is_no_refusal(error: KubernetesError) -> None:
    assert not is_refusal(error)
