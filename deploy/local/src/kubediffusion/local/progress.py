"""Long steps that say what they do: one line each, alive on a terminal, sparse in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 15.0
CLEAR_LINE = "\r\033[K"


class Step:
    """A step under way; `detail` may be changed at any time and is shown beside the elapsed seconds."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self.detail = ""
        self._title = title
        self._stream = stream
        self._started = time.monotonic()

    @property
    def pause(self) -> float:
        """The seconds between two showings."""
        return TERMINAL_SECONDS if self._stream.isatty() else LOG_SECONDS

    def line(self) -> str:
        """Return the step's present line."""
        detail = f"{self.detail}, " if self.detail else ""
        return f"{self._title}: {detail}{time.monotonic() - self._started:.0f} s"

    def show(self) -> None:
        """Show the present line: in place on a terminal, as a new one in a log."""
        self._stream.write(f"{CLEAR_LINE}{self.line()}" if self._stream.isatty() else f"{self.line()}\n")
        self._stream.flush()

    def finish(self, outcome: str) -> None:
        """Show how it ended."""
        self._stream.write(f"{CLEAR_LINE if self._stream.isatty() else ''}{self.line()}, {outcome}\n")
        self._stream.flush()


@contextmanager
def step(title: str, stream: TextIO | None = None) -> Iterator[Step]:
    """Show a step's progress for as long as the block runs."""
    running = Step(title, stream or sys.stderr)
    done = threading.Event()

    def tick() -> None:
        while not done.wait(running.pause):
            running.show()

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    outcome = "interrupted"
    try:
        yield running
        outcome = "done"
    except Exception:
        outcome = "failed"
        raise
    finally:
        done.set()
        ticker.join()
        running.finish(outcome)


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Write a line for the person at the terminal."""
    out = stream or sys.stdout
    out.write(f"{text}\n")
    out.flush()
