"""What is installed is pinned to the byte, and by no address: whoever installs chooses where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kubediffusion.local.layout import MODELS, REQUIREMENTS

FILES = [*sorted(REQUIREMENTS.glob("*.txt")), MODELS / "training" / "requirements.txt"]
PINNED = re.compile(r"[\w.\[\],-]+==[\w.!+-]+( ; .+)?( --hash=sha256:[0-9a-f]{64})+")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_requirement_is_one_version_with_its_hashes(file: Path) -> None:
    whole = re.sub(r" *\\\n *", " ", file.read_text())
    lines = [line.strip() for line in whole.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert lines
    assert [line[:80] for line in lines if not PINNED.fullmatch(line)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_names_an_address(file: Path) -> None:
    assert "://" not in file.read_text()
