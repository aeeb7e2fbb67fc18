"""Results as files: JSON for programs, Markdown for people, and the generated parts of ``docs/performance.md``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from kubediffusion.benchmarks import plots, tables
from kubediffusion.local.layout import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGE = DOCS / "performance.md"
IMAGES = DOCS / "images"

Results = dict[str, Any]
"""The results of each suite by its name, with the machine that it ran on."""


def save(results: Results, folder: Path) -> None:
    """Write the results as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def write(results: Results, folder: Path) -> str:
    """Write the results as JSON, as Markdown and as plots, and return the Markdown."""
    save(results, folder)
    plots.draw(results, folder)
    text = "\n".join(f"## {name}\n\n{_section(name, found, folder, '')}" for name, found in results.items())
    (folder / "results.md").write_text(text)
    return text


def publish(results: Results, folder: Path) -> None:
    """Put each suite's tables and plots into its place in ``docs/performance.md``; other suites' stay.

    Raises:
        ValueError: The page has no place for a suite.
    """
    page = PAGE.read_text()
    for name, found in results.items():
        for plot in _plots(name, folder):
            shutil.copyfile(plot, IMAGES / plot.name)
        begin, end = place(page, name)
        page = f"{page[:begin]}\n{_section(name, found, folder, 'images/')}{page[end:]}"
    PAGE.write_text(page)


def place(page: str, suite: str) -> tuple[int, int]:
    """Return where a suite's part of the page begins and ends.

    Raises:
        ValueError: The page has no place for it.
    """
    begin, end = f"<!-- begin {suite} -->", f"<!-- end {suite} -->"
    return page.index(begin) + len(begin), page.index(end)


def _section(name: str, found: dict[str, Any], folder: Path, where: str) -> str:
    about = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    pictures = "".join(f"![{plot.stem}]({where}{plot.name})\n\n" for plot in _plots(name, folder))
    return f"{tables.suite(name, found)}\n{pictures}<sub>{about}</sub>\n"


def _plots(name: str, folder: Path) -> list[Path]:
    return sorted(folder.glob(f"performance-{name}*.svg"))
