"""Puts the builders of this folder on the path, as tests are no packages, and makes pipelines for all of its tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kubediffusion.worker import testing


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a tiny pipeline by its family, made once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = getattr(testing, f"save_{family}")(tmp_path_factory.mktemp("models") / family)
        return made[family]

    return folder
