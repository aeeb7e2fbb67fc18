"""Stands in for the capture of CUDA graphs, with all else real."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Captures:
    """Captures nothing, and remembers for what it was asked.

    Attributes:
        refusing: Raised by the next captures.
    """

    def __init__(self) -> None:
        self.count = 0
        self.refusing: Exception | None = None

    def __call__(self, compute: Callable[[], Any], store: Callable[[Any], object], *_: Any, **__: Any) -> Any:
        if self.refusing is not None:
            raise self.refusing
        self.count += 1
        return SimpleNamespace(replay=lambda: store(compute()))


def wait_for(done: Callable[[], bool]) -> None:
    """Wait at most a minute until a condition holds."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
