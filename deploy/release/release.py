"""Keeps one version in every place that names it, and says what is missing before a release. Needs Python alone.

The one place is the file VERSION; ``set`` writes the others from it, ``places`` checks that they agree, and ``check``
looks at the changelog, the tags and the tree as well.
"""

from __future__ import annotations

import argparse
import datetime as dt
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

SEMANTIC = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?")
"""A version by https://semver.org without build metadata, which image tags cannot hold."""

_SECTION = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\S+))?$", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """A place that names the version.

    Attributes:
        files: A glob of files below the repository.
        pattern: What stands before the version and after it, as two groups; all its matches name it.
        optional: Whether a file may name none.
    """

    files: str
    pattern: str
    optional: bool = False

    def rewrite(self, text: str, version: str) -> str:
        """Return the text of a file with this version."""
        return re.sub(self.pattern, lambda found: found[1] + version + found[2], text, flags=re.MULTILINE)


_VERSION = r"[0-9][0-9A-Za-z.-]*"

PLACES = (
    Place("{part}/pyproject.toml", rf'^(version = "){_VERSION}(")$'),
    Place("{part}/pyproject.toml", rf'("kubediffusion-[a-z]+==){_VERSION}(")', optional=True),
    Place("charts/kubediffusion/Chart.yaml", rf"^((?:appV|v)ersion: ){_VERSION}()$"),
    Place("deploy/images/*.Dockerfile", rf"^(ARG VERSION=){_VERSION}()$"),
    Place("docs/install.md", rf"(TAG=){_VERSION}()$"),
    Place("docs/install.md", rf"(kubediffusion-(?:operator|api|worker):){_VERSION}()$"),
    Place("docs/guides/*.md", rf"(kubediffusion-(?:operator|api|worker):){_VERSION}(\s|$)", optional=True),
)
PARTS = ("resources", "operator", "worker", "api", "client", "deploy/local", "benchmarks")


class ReleaseError(Exception):
    """Something is to be mended before a release; the message says what."""


def read_version(repository: Path) -> str:
    """Return the version that VERSION names.

    Raises:
        ReleaseError: It is no semantic version.
    """
    version = (repository / "VERSION").read_text().strip()
    if not SEMANTIC.fullmatch(version):
        raise ReleaseError(f"VERSION: {version!r} is no semantic version such as 1.2.3 or 1.2.3-rc.1")
    return version


def outdated(repository: Path, version: str) -> Iterator[tuple[Path, str]]:
    """Yield each file that names another version, with the text that it should have.

    Raises:
        ReleaseError: A place is gone: its pattern matches nothing.
    """
    texts: dict[Path, str] = {}
    for place in PLACES:
        for path in _files(repository, place):
            text = texts.get(path) or path.read_text()
            if not place.optional and not re.search(place.pattern, text, re.MULTILINE):
                raise ReleaseError(f"{path.relative_to(repository)}: no version where {place.pattern} looks for it")
            texts[path] = place.rewrite(text, version)
    yield from ((path, text) for path, text in texts.items() if text != path.read_text())


def _files(repository: Path, place: Place) -> list[Path]:
    if "{part}" in place.files:
        return [repository / place.files.format(part=part) for part in PARTS]
    return sorted(repository.glob(place.files))


def check_places(repository: Path) -> None:
    """Check that every place names the version.

    Raises:
        ReleaseError: One names another.
    """
    version = read_version(repository)
    wrong = [str(path.relative_to(repository)) for path, _ in outdated(repository, version)]
    if wrong:
        raise ReleaseError(f"not of version {version}: {', '.join(wrong)}; run: make version TO={version}")


def set_version(repository: Path, version: str) -> None:
    """Write a version into every place.

    Raises:
        ReleaseError: It is no semantic version, or a place is gone; nothing was written.
    """
    if not SEMANTIC.fullmatch(version):
        raise ReleaseError(f"{version!r} is no semantic version such as 1.2.3 or 1.2.3-rc.1")
    changed = list(outdated(repository, version))
    for path, text in changed:
        path.write_text(text)
    (repository / "VERSION").write_text(f"{version}\n")


def check_changelog(text: str, version: str) -> None:
    """Check that the changelog has a dated section of the version, with entries, above all older ones.

    Raises:
        ReleaseError: It has not; the message says what to write.
    """
    sections = list(_SECTION.finditer(text))
    names = [section["name"] for section in sections]
    if names[:2] != ["Unreleased", version]:
        raise ReleaseError(f"CHANGELOG.md: below an empty '## [Unreleased]' comes '## [{version}] - YYYY-MM-DD'")
    ends = [section.start() for section in sections[1:]] + [len(text)]
    bodies = [text[section.end() : end].strip() for section, end in zip(sections, ends, strict=True)]
    if bodies[0]:
        raise ReleaseError(f"CHANGELOG.md: entries under [Unreleased] belong under [{version}]")
    if not bodies[1]:
        raise ReleaseError(f"CHANGELOG.md: [{version}] has no entries")
    try:
        dt.date.fromisoformat(sections[1]["date"] or "")
    except ValueError:
        raise ReleaseError(f"CHANGELOG.md: [{version}] has no date (YYYY-MM-DD)") from None


def notes(text: str, version: str) -> str:
    """Return what the changelog says of a version.

    Raises:
        ReleaseError: It says nothing that can be released.
    """
    check_changelog(text, version)
    sections = list(_SECTION.finditer(text))
    end = sections[2].start() if len(sections) > 2 else len(text)
    return text[sections[1].end() : end].strip()


def check_tree(repository: Path, tag: str, *, tagged: bool) -> None:
    """Check that the tree is what will be released: nothing uncommitted, and the tag on it or not there yet.

    Args:
        repository: The checkout.
        tag: The tag of the release.
        tagged: Whether the tag must be there already, on this commit.

    Raises:
        ReleaseError: It is not.
    """
    if changed := _git(repository, "status", "--porcelain"):
        raise ReleaseError(f"the tree has changes that are not committed:\n{changed}")
    at = _git(repository, "tag", "--list", tag, "--format", "%(*objectname)%(objectname)")[:40]
    if tagged and at != _git(repository, "rev-parse", "HEAD"):
        raise ReleaseError(f"tag {tag} is not on this commit")
    if at and not tagged:
        raise ReleaseError(f"tag {tag} is there already; the next release has another version")


def check(repository: Path, *, tagged: bool = False) -> str:
    """Check all that can be checked before a release, and return its version.

    Raises:
        ReleaseError: Something is missing.
    """
    version = read_version(repository)
    check_places(repository)
    check_changelog((repository / "CHANGELOG.md").read_text(), version)
    check_tree(repository, f"v{version}", tagged=tagged)
    return version


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status: 1 with one line where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("places", help="check that every place names the version of VERSION")
    setting = commands.add_parser("set", help="write a version into every place")
    setting.add_argument("version")
    checking = commands.add_parser("check", help="check that this commit can be released")
    checking.add_argument("--tagged", action="store_true", help="the tag must be on this commit already")
    commands.add_parser("notes", help="print what the changelog says of this version")
    options = parser.parse_args(arguments)
    try:
        match options.command:
            case "places":
                check_places(REPOSITORY)
            case "set":
                set_version(REPOSITORY, options.version)
            case "notes":
                print(notes((REPOSITORY / "CHANGELOG.md").read_text(), read_version(REPOSITORY)))  # noqa: T201 - its answer
            case _:
                print(check(REPOSITORY, tagged=options.tagged))  # noqa: T201 - its answer
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)  # noqa: T201 - a command's
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
