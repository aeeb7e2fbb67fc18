"""Stands in for the capture of CUDA graphs, with all else real."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch


class Captures:
    """Captures nothing, and remembers for what it was asked.

    Attributes:
        count: How many captures there were.
        refused: How many did not fit :attr:`most_rows`.
        refusing: Raised by the next captures.
        most_rows: A capture of more rows is out of memory; None for no bound.
    """

    def __init__(self) -> None:
        self.count = 0
        self.refused = 0
        self.refusing: Exception | None = None
        self.most_rows: int | None = None

    def __call__(self, compute: Callable[[], Any], store: Callable[[Any], object], *_: Any, **__: Any) -> Any:
        if self.refusing is not None:
            raise self.refusing
        if self.most_rows is not None and len(compute()) > self.most_rows:
            self.refused += 1
            raise torch.OutOfMemoryError("too much")
        self.count += 1
        return SimpleNamespace(replay=lambda: store(compute()))


def wait_for(done: Callable[[], bool]) -> None:
    """Wait at most a minute until a condition holds."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
