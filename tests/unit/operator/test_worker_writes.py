"""Which of the API server's answers is a refusal, of which people are told."""

from __future__ import annotations

import datetime as dt

import pytest
from builders import HASH

from kubediffusion.operator.background_tasks import BackgroundTasks
from kubediffusion.operator.cluster import NameTakenError
from kubediffusion.operator.events import EventRecorder
from kubediffusion.operator.state import Namespaces
from kubediffusion.operator.telling import Teller
from kubediffusion.operator.worker_writes import WorkerWrites
from kubediffusion.resources.client import KubernetesError, error_from_status
from kubediffusion.resources.testing import NAMESPACE, model


def refused(*errors):
    """Have a worker's creation end so, one after the other; give what is kept, the Events and the pauses."""
    namespaces, events = Namespaces(lambda _: HASH, dt.timedelta()), EventRecorder(None, "operator-0")
    writes = WorkerWrites(None, namespaces, BackgroundTasks(), Teller(events), lambda _: None)
    pauses = [writes._refuse(model(), error) for error in errors]
    return namespaces[NAMESPACE].refusals, events._queue.qsize(), pauses


def answer(status, reason, message):
    return error_from_status(status, {"reason": reason, "message": message})


FORBIDDEN = answer(403, "Forbidden", "exceeded quota: gpus")


@pytest.mark.parametrize(
    "error",
    [FORBIDDEN, answer(422, "Invalid", "spec.template is invalid"), NameTakenError(409, "AlreadyExists", "taken")],
    ids=lambda error: error.reason,
)
def test_a_refusal_is_kept_and_told_once(error):
    refusals, told, pauses = refused(error, error)
    assert (refusals, told) == ({"emoji": error.message}, 1)
    assert pauses[1] > 0


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
    ids=lambda error: f"{error.status}-{error.reason}",
)
def test_what_goes_by_is_no_refusal_and_only_waited_out(error):
    refusals, told, pauses = refused(error)
    assert (refusals, told) == ({}, 0)
    assert pauses[0] > 0
    # What is really refused stays said.
    assert refused(FORBIDDEN, error)[:2] == ({"emoji": "exceeded quota: gpus"}, 1)
