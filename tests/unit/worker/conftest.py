"""Puts the builders of this folder on the path, as tests are no packages, and makes pipelines for all of its tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubediffusion.worker import testing


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a family to the folder of its tiny pipeline, made once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = getattr(testing, f"save_{family}")(tmp_path_factory.mktemp("models") / family)
        return made[family]

    return folder


@pytest.fixture
def touched() -> Iterator[list[str]]:
    """Every path that is opened and every address that is looked up meanwhile."""
    seen: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in {"open", "socket.connect", "socket.getaddrinfo"}:
            seen.append(str(arguments))

    # A hook cannot be taken away again.
    sys.addaudithook(hook)
    yield seen
    watching = False
