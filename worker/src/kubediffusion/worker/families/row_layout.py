"""Where the layers of a denoiser have the rows of a step."""

from __future__ import annotations

from enum import Enum


class RowLayout(Enum):
    """Where a layer's input has the rows of a step, which are those of its images."""

    FIRST = "first"
    """``[rows, ...]``."""
    SECOND = "second"
    """``[places, rows, channels]``."""
    FLATTENED = "flattened"
    """``[rows * places, ...]``, row after row."""
