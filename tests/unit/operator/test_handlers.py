"""What kopf tells comes in typed, and what cannot be read stops nobody."""

from __future__ import annotations

from typing import Any

import pytest

from kubediffusion.operator.handlers import report
from kubediffusion.operator.workers import Pod
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.testing import job


@pytest.mark.parametrize(
    ("kind", "gone"), [(None, False), ("ADDED", False), ("MODIFIED", False), ("DELETED", True)], ids=str
)
def test_an_event_is_an_object_and_whether_it_is_gone(kind: Any, gone: bool) -> None:
    told: list[tuple[GenerationJob, bool]] = []
    event: Any = {"type": kind, "object": job("a").to_wire()}
    report(event, GenerationJob, lambda item, is_gone: told.append((item, is_gone)))
    assert told == [(job("a"), gone)]


def test_an_object_that_cannot_be_read_is_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    told: list[GenerationJob] = []
    body: Any = {"metadata": {"name": "odd"}, "spec": {"prompt": "a fox", "scheduler": "NewerScheduler"}}
    report({"type": "ADDED", "object": body}, GenerationJob, lambda item, _: told.append(item))
    assert told == []
    assert "cannot read GenerationJob odd" in caplog.text


def test_a_pod_of_any_age_is_read() -> None:
    told: list[Pod] = []
    report({"type": "ADDED", "object": {"metadata": {"name": "p"}}}, Pod, lambda item, _: told.append(item))
    assert [pod.status.phase for pod in told] == ["Pending"]
