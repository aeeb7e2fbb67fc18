"""Clocks that can be stepped: of single processes, never the machine's. Needs a C compiler."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")
LIBRARY = "clock.so"
OFFSET = "offset"


def available() -> bool:
    """Return whether clocks can be stepped on this machine."""
    return shutil.which("cc") is not None


def prepare(folder: Path) -> Path:
    """Build what steps clocks, in a folder; nothing is stepped yet."""
    folder.mkdir(parents=True, exist_ok=True)
    step(folder, 0)
    if available():
        command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(folder / LIBRARY), str(SOURCE)]
        subprocess.run(command, check=True, timeout=60)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Return what a process needs in its environment for its clock to be stepped."""
    if not available():
        return {}
    return {"LD_PRELOAD": str(folder / LIBRARY), "CHAOS_CLOCK": str(folder / OFFSET)}


def step(folder: Path, seconds: int) -> None:
    """Set the clocks so many seconds ahead of the machine's, or behind."""
    file = folder / OFFSET
    if not file.exists():
        file.write_bytes(bytes(4))
    with file.open("r+b") as opened:
        # In place: processes have mapped this very file.
        opened.write(struct.pack("=i", seconds))
