"""One job that the operator cannot take in is named in the log, and keeps nobody else's from it."""

from __future__ import annotations

import pytest

from kubediffusion.operator.watching import isolate_errors
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.testing import job


def test_a_job_at_which_the_observer_fails_is_named_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    observed: list[tuple[str, bool]] = []

    def observe(item: GenerationJob, deleted: bool) -> None:
        if item.name == "bad":
            raise OverflowError("date value out of range")
        observed.append((item.name, deleted))

    isolated = isolate_errors(observe)
    for name in ("first", "bad", "last"):
        isolated(job(name), False)
    isolated(job("bad"), True)
    assert observed == [("first", False), ("last", False)]
    assert [getattr(record, "job", None) for record in caplog.records] == ["bad", "bad"]
    assert "date value out of range" in caplog.text
