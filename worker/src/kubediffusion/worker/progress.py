"""How loading a model tells where it stands: one callable, which any thread may call and which returns at once."""

from __future__ import annotations

from collections.abc import Callable

from kubediffusion.resources.conditions import EngineReason

Progress = Callable[[EngineReason, str], None]
"""Takes the stage, and a message for people. Stages may be left out, and told again with another message."""


def untold(_stage: EngineReason, _message: str) -> None:
    """Tell nobody."""
