"""The callback through which loading a model reports its stages."""

from __future__ import annotations

from collections.abc import Callable

from kubediffusion.resources.conditions import EngineReason

OnStage = Callable[[EngineReason, str], None]
"""Called with the stage and a message for people, from any thread; returns at once. Stages may be left out, or come
again with another message."""


def ignore_stage(_stage: EngineReason, _message: str) -> None:
    """Do nothing: an :data:`OnStage` for callers that do not watch the start."""
