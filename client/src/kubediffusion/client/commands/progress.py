"""How a job comes along, in a terminal: its place in the queue and why it waits, then a bar. Elsewhere it is silent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kubediffusion.client.commands.output import console, one_line, say
from kubediffusion.client.commands.words import standing

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from kubediffusion.client.errors import KubeDiffusionError
    from kubediffusion.client.views import JobView


class ProgressBar:
    """The line of one job on standard error; of none, where nobody looks."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said = ""

    @contextmanager
    def shown(self, *, quiet: bool) -> Iterator[None]:
        """Show it for as long as the block runs, if standard error is a terminal."""
        terminal = console(error=True)
        if quiet or not terminal.is_terminal:
            yield
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[steps]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=terminal, transient=True) as self._progress:
            self._task = self._progress.add_task("asks for a job", total=None, steps="")
            yield
        self._progress = None

    def job(self, job: JobView) -> None:
        """Show where a job stands."""
        steps = job.steps
        done, total = steps if steps is not None else (0, None)
        self._update(standing(job), total, done, job.progress or "")

    def retry(self, error: KubeDiffusionError, pause: float) -> None:
        """Show that a request is tried again; where there is no terminal, say it once for each reason."""
        words = f"{error.reason}; tries again in {math.ceil(pause)} s"
        if self._progress is not None:
            self._update(words, None, 0, "")
        elif error.reason != self._said:
            self._said = error.reason
            say(words)

    def _update(self, description: str, total: int | None, done: int, steps: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, description=one_line(description), total=total, completed=done, steps=steps
            )
