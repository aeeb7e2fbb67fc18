"""A job in words."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from kubediffusion.client import errors
from kubediffusion.client.commands.exit_codes import ExitCode, exit_code_of
from kubediffusion.client.commands.output import one_line
from kubediffusion.client.commands.words import duration, explanation, standing
from kubediffusion.client.views import JobView

BORN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NOW = BORN + dt.timedelta(seconds=75)


def view(**fields: Any) -> JobView:
    body = {"name": "fox", "phase": "Pending", "prompt": "a fox", "created_at": BORN, "request": {"prompt": "a fox"}}
    return JobView.from_wire(body | fields)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0ms"), (0.0152, "15ms"), (4.24, "4.2s"), (59.9, "59s"), (190, "3m10s"), (7500, "2h5m"), (400_000, "4d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "waits for the operator"),
        ({"suspended": True}, "it is suspended"),
        ({"queue_position": 3}, "place 3 in the queue"),
        (
            {"queue_position": 3, "waiting": {"reason": "WorkersBusy", "message": "all at capacity"}},
            "place 3 in the queue: all at capacity (WorkersBusy)",
        ),
        ({"phase": "Scheduled", "worker": "w-0"}, "is given to w-0"),
        ({"phase": "Running", "worker": "w-0"}, "runs on w-0"),
        ({"phase": "Failed"}, "failed"),
    ],
)
def test_where_a_job_stands(fields: dict[str, Any], words: str) -> None:
    assert standing(view(**fields)) == words


def test_an_explanation_tells_of_retries_and_errors() -> None:
    job = view(
        phase="Failed", attempt=3, retries=2, worker="w-0", error={"code": "WorkerDied", "message": "killed"},
        warnings=["the prompt was cut"], completed_at=BORN + dt.timedelta(seconds=60), timings={"queue": 2.0},
    )  # fmt: skip
    assert explanation(job, NOW)[3:] == [
        ("phase", "Failed, 1m0s after it was created"),
        ("attempts", "3, the last on w-0; workers that died with it: 2"),
        ("took", "2.0s in the queue"),
        ("error", "WorkerDied: killed"),
        ("warning", "the prompt was cut"),
    ]


def test_a_job_that_runs_and_is_to_be_cancelled() -> None:
    job = view(phase="Running", worker="w-0", attempt=1, progress="3/25", cancel_requested=True)
    assert job.steps == (3, 25)
    lines = dict(explanation(job, NOW))
    assert lines["phase"] == "Running, created 1m15s ago"
    assert lines["now"] == "runs on w-0, step 3/25"
    assert "next step" in lines["cancel"]


def test_what_a_prompt_holds_moves_no_cursor() -> None:
    assert one_line("a\x1b[2J\nfox\u202e") == "a [2J fox "


def test_every_error_that_is_no_failure_has_a_number_of_its_own() -> None:
    kinds = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.KubeDiffusionError)
    }
    failures = {errors.KubeDiffusionError, errors.JobFailedError}
    for kind in kinds:
        error = kind.__new__(kind)
        assert (exit_code_of(error) is ExitCode.FAILED) == (kind in failures), kind
