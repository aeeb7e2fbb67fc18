"""Somebody who plays operator and worker for every job that comes, by itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx

from integration.api.api_kit import Stage, png
from kubediffusion.api.schemas import EXAMPLE_ID, EXAMPLE_RUNNING_ID

PAUSE = 0.02
"""Seconds between two looks at the jobs."""


@contextlib.contextmanager
def playing(stage: Stage) -> Iterator[None]:
    """Complete each job at once, and keep the two of the document's examples there: one that is done, one that runs."""
    ended = threading.Event()

    def play() -> None:
        while not ended.wait(PAUSE):
            # A job may be deleted, or cancelled, in between.
            with contextlib.suppress(AssertionError, httpx.HTTPStatusError):
                _look(stage)

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _look(stage: Stage) -> None:
    jobs = stage.jobs()
    for example in {EXAMPLE_ID, EXAMPLE_RUNNING_ID} - {job["metadata"]["name"] for job in jobs}:
        stage.create(example, {"prompt": "an example"})
    for job in jobs:
        with contextlib.suppress(AssertionError, httpx.HTTPStatusError):
            _play(stage, job)


def _play(stage: Stage, job: dict[str, Any]) -> None:
    name, phase = job["metadata"]["name"], job.get("status", {}).get("phase", "Pending")
    if phase not in {"Pending", "Scheduled", "Running"}:
        if name == EXAMPLE_RUNNING_ID:
            # It has been cancelled: another takes its place.
            stage.delete(name)
        return
    if job["spec"].get("cancel"):
        stage.cancelled(name)
    elif name == EXAMPLE_RUNNING_ID:
        if phase == "Pending":
            stage.bind(name)
            stage.run(name)
            stage.preview(name, png("blue"))
    else:
        stage.complete(name, *(png() for _ in range(job["spec"].get("numImages", 1))))
