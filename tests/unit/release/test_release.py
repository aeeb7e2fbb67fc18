"""One version in every place, and what keeps a commit from being released."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deploy.release import release
from deploy.release.release import PARTS, ReleaseError

from kubediffusion.local.layout import REPOSITORY

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n### Added\n- All.\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository that has the places of this one, at version 0.2.0 and ready to be released."""
    for part in PARTS:
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / part / "pyproject.toml", tmp_path / part)
    for name in ("VERSION", "charts/kubediffusion/Chart.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for page in (REPOSITORY / "docs").glob("**/*.md"):
        (tmp_path / page.relative_to(REPOSITORY)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, tmp_path / page.relative_to(REPOSITORY))
    shutil.copytree(REPOSITORY / "deploy" / "images", tmp_path / "deploy" / "images")
    release.set_version(tmp_path, "0.2.0")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "commit", "--quiet", "--all", "--message", "Change")


def test_every_place_of_this_checkout_names_one_version() -> None:
    release.check_places(REPOSITORY)


def test_a_version_is_written_everywhere(checkout: Path) -> None:
    release.set_version(checkout, "1.0.0-rc.1")
    release.check_places(checkout)
    chart = yaml.safe_load((checkout / "charts/kubediffusion/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == ("1.0.0-rc.1", "1.0.0-rc.1")
    assert '"kubediffusion-resources==1.0.0-rc.1"' in (checkout / "api/pyproject.toml").read_text()
    named = re.compile(
        r"kubediffusion-(?:operator|api|worker):([0-9]\S*)|^(?:TAG|version|appVersion)[:= ]+(\S+)$", re.MULTILINE
    )
    pages = [checkout / "charts/kubediffusion/Chart.yaml", *checkout.glob("docs/**/*.md")]
    versions = {first or second for page in pages for first, second in named.findall(page.read_text())}
    assert versions == {"1.0.0-rc.1"}


@pytest.mark.parametrize("version", ["1.0", "v1.0.0", "1.0.0+build", "01.0.0", ""])
def test_what_is_no_version_is_written_nowhere(checkout: Path, version: str) -> None:
    with pytest.raises(ReleaseError, match="no semantic version"):
        release.set_version(checkout, version)
    assert release.check(checkout) == "0.2.0"


def test_a_place_with_another_version_is_named(checkout: Path) -> None:
    path = checkout / "charts/kubediffusion/Chart.yaml"
    path.write_text(path.read_text().replace("appVersion: 0.2.0", "appVersion: 0.1.0"))
    with pytest.raises(ReleaseError, match=r"charts/kubediffusion/Chart\.yaml; run: make version TO=0\.2\.0"):
        release.check_places(checkout)


def test_a_place_that_is_gone_is_named(checkout: Path) -> None:
    (checkout / "deploy/images/api.Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(ReleaseError, match=r"deploy/images/api\.Dockerfile: no version"):
        release.check_places(checkout)


def test_the_notes_of_a_release_are_its_section_of_the_changelog() -> None:
    older = "\n## [0.1.0] - 2026-01-01\n- Some.\n"
    assert release.notes(CHANGELOG, "0.2.0") == release.notes(CHANGELOG + older, "0.2.0") == "### Added\n- All."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("## [Unreleased]\n- All.\n", "comes '## \\[0.2.0\\]"),
        ("## [Unreleased]\n\n## [0.1.0] - 2026-01-01\n- All.\n", "comes '## \\[0.2.0\\]"),
        ("## [Unreleased]\n- More.\n\n## [0.2.0] - 2026-12-01\n- All.\n", "entries under \\[Unreleased\\]"),
        ("## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n", "no entries"),
        ("## [Unreleased]\n\n## [0.2.0]\n- All.\n", "no date"),
        ("## [Unreleased]\n\n## [0.2.0] - tomorrow\n- All.\n", "no date"),
    ],
)
def test_a_changelog_that_does_not_tell_of_it(text: str, problem: str) -> None:
    with pytest.raises(ReleaseError, match=problem):
        release.check_changelog(text, "0.2.0")


def test_a_commit_is_released_once(checkout: Path) -> None:
    assert release.check(checkout) == "0.2.0"
    with pytest.raises(ReleaseError, match=r"tag v0\.2\.0 is not on this commit"):
        release.check(checkout, tagged=True)
    git(checkout, "tag", "--annotate", "v0.2.0", "--message", "0.2.0")
    assert release.check(checkout, tagged=True) == "0.2.0"
    with pytest.raises(ReleaseError, match="is there already"):
        release.check(checkout)
    (checkout / "more").write_text("")
    with pytest.raises(ReleaseError, match="not committed"):
        release.check(checkout, tagged=True)
    git(checkout, "add", ".")
    commit(checkout)
    with pytest.raises(ReleaseError, match="not on this commit"):
        release.check(checkout, tagged=True)


def test_the_command_says_in_one_line_what_is_missing() -> None:
    program = str(REPOSITORY / "deploy" / "release" / "release.py")
    done = subprocess.run([sys.executable, program, "set", "one"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "release: 'one' is no semantic version such as 1.2.3 or 1.2.3-rc.1\n"
