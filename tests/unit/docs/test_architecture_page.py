"""The map of docs/architecture.md names each module of each part once, and leads to none that does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

import documented
from kubediffusion.local.layout import REPOSITORY

PAGE = "architecture"
PARTS = ("resources", "operator", "worker", "api", "client", "deploy/local")
"""In the order of the map's tables."""


@pytest.mark.parametrize("part", PARTS)
def test_the_map_names_each_module_once(part: str) -> None:
    rows = documented.table(PAGE, "The map", PARTS.index(part))
    named = [name for cell, _ in rows for name in documented.code(cell)]
    folder = _package(part)
    modules = [path.stem for path in folder.glob("*.py") if path.stem not in {"__init__", "__main__"}]
    packages = [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    assert sorted(named) == sorted(modules + packages)


def test_questions_lead_to_modules_that_exist() -> None:
    cells = [cell for _, cell in documented.table(PAGE, "Where to look")]
    places = [place for cell in cells for place in documented.code(cell) if place.partition("/")[0] in PARTS]
    assert len(places) >= len(cells) - 2
    assert [place for place in places if not _exists(place)] == []


def _exists(place: str) -> bool:
    part, _, module = place.partition("/")
    path = _package(part) / module
    return path.is_dir() or path.with_suffix(".py").is_file()


def _package(part: str) -> Path:
    return REPOSITORY / part / "src" / "kubediffusion" / Path(part).name
