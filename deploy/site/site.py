"""Builds the documentation site from the pages of the repository and from the code; a broken link fails it."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from deploy.site import reference  # noqa: E402 - found once the repository is on the path

STAGED = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE",
    "docs",
    "deploy/examples",
    "models/*/README.md",
    "models/*/*.png",
    "models/*/*.webp",
)
"""What the site holds, as git lists it; besides come the files that its pages link to."""


def stage(repository: Path, folder: Path) -> None:
    """Lay the pages out as they lie in the repository, so that their links hold, with the reference beside them.

    Args:
        repository: The checkout.
        folder: Where they go; what is there is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    for name in tracked(repository):
        target = pages / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, target)
    (pages / "reference").mkdir(parents=True)
    for name, text in reference.pages(repository):
        (pages / "reference" / name).write_text(text)
    shutil.copy(repository / "deploy/site/zensical.toml", folder)


def tracked(repository: Path) -> list[str]:
    """Return the files to stage, below the repository; those that are new and not ignored too."""
    command = ["git", "-C", str(repository), "ls-files", "--cached", "--others", "--exclude-standard", "--", *STAGED]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {name for name in listed if (repository / name).is_file()}
    for name in tuple(found):
        if name.endswith(".md"):
            found |= linked(repository, name)
    return sorted(found)


def linked(repository: Path, page: str) -> set[str]:
    """Return the files of the repository that a page links to, pages left out."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (repository / page).read_text())
    paths = [(repository / page).parent / target for target in targets if "://" not in target]
    there = [path.resolve() for path in paths if path.is_file() and path.suffix != ".md"]
    return {str(path.relative_to(repository)) for path in there if path.is_relative_to(repository)}


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Have Zensical build what is staged, with warnings as errors, and return how that went."""
    program = Path(sys.executable).with_name("zensical")
    command = [str(program), "build", "--strict", "--clean", "--config-file", str(folder / "zensical.toml")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the site into a folder, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=REPOSITORY / "dist" / "docs")
    folder = parser.parse_args(arguments).folder.absolute()
    stage(REPOSITORY, folder)
    done = build(folder)
    sys.stdout.write(done.stdout + done.stderr)
    if done.returncode == 0:
        sys.stdout.write(f"The site is {folder / 'site' / 'index.html'}\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
