"""Events, as the API server takes them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kubediffusion.operator.events import Event, event_body
from kubediffusion.resources.testing import NAMESPACE, NOW, job

SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""What the API server takes as a name (RFC 1123)."""


def body(name: str = "fox", message: str = "why") -> dict[str, Any]:
    return event_body(Event(job(name), "Normal", "WorkersBusy", message), "operator-0", NOW)


@pytest.mark.parametrize("name", ["fox", "a" * 253, "a" * 199 + "-b", "a" * 199 + ".b", "a.b" * 80])
def test_an_event_of_any_job_has_a_name_of_its_own(name: str) -> None:
    names = [body(name)["metadata"]["name"] for _ in range(2)]
    assert all(SUBDOMAIN.fullmatch(each) and len(each) <= 253 for each in names)
    assert names[0] != names[1]


def test_an_event_is_about_its_job_and_fits() -> None:
    event = body(message="x" * 5000)
    assert (event["regarding"]["name"], event["regarding"]["uid"]) == ("fox", "uid-fox")
    assert event["metadata"]["namespace"] == event["regarding"]["namespace"] == NAMESPACE
    assert (event["reason"], event["type"], event["note"]) == ("WorkersBusy", "Normal", "x" * 1021 + "…")


def test_a_note_is_cut_to_whole_characters_of_as_many_bytes_as_are_taken() -> None:
    assert body(message="ä" * 1024)["note"] == "ä" * 510 + "…"
    assert body(message="x" + "ä" * 1024)["note"] == "x" + "ä" * 510 + "…"
