"""The documentation site: it builds without a warning, leads to every page, and names every field and setting."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from deploy.site import site

from kubediffusion.local.layout import REPOSITORY
from kubediffusion.operator.settings import Settings
from kubediffusion.resources.generation_job import GenerationJobSpec, GenerationJobStatus

CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, laid out."""
    folder = tmp_path_factory.mktemp("site") / "docs"
    site.stage(REPOSITORY, folder)
    return folder


def navigated(entries: Any) -> set[str]:
    """The pages of a part of the navigation."""
    match entries:
        case str():
            return {entries}
        case dict():
            return {page for part in entries.values() for page in navigated(part)}
        case _:
            return {page for part in entries for page in navigated(part)}


def test_it_builds_without_a_warning(folder: Path) -> None:
    done = site.build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    index = (folder / "site" / "index.html").read_text()
    assert "KubeDiffusion" in index
    # Nothing is asked of other hosts: it is read where there is no network too.
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', index) == []


def test_a_broken_link_fails_it(folder: Path, tmp_path: Path) -> None:
    site.stage(REPOSITORY, tmp_path / "docs")
    page = tmp_path / "docs" / "pages" / "docs" / "start.md"
    page.write_text(page.read_text() + "\n[nowhere](nowhere.md)\n")
    assert site.build(tmp_path / "docs").returncode != 0


def test_the_navigation_leads_to_every_page(folder: Path) -> None:
    there = navigated(tomllib.loads((folder / "zensical.toml").read_text())["project"]["nav"])
    pages = {path.relative_to(folder / "pages") for path in folder.glob("pages/docs/**/*.md")}
    pages |= {path.relative_to(folder / "pages") for path in folder.glob("pages/reference/*.md")}
    # Decisions are listed on a page of their own.
    assert {str(page) for page in pages if page.parent.name != "adr"} <= there
    assert [page for page in there if not (folder / "pages" / page).is_file()] == []


def test_links_lead_to_files_that_are_staged(folder: Path) -> None:
    links = [
        (page, target)
        for page in folder.glob("pages/**/*.md")
        for target in re.findall(
            r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
        )
    ]
    assert [link for link in links if "://" not in link[1] and not (link[0].parent / link[1]).exists()] == []


def test_every_field_and_setting_is_in_the_reference(folder: Path) -> None:
    job = (folder / "pages/reference/generationjob.md").read_text()
    for schema in (GenerationJobSpec, GenerationJobStatus):
        for info in schema.model_fields.values():
            assert f"\n| `{info.alias}`" in job
    settings = (folder / "pages/reference/settings.md").read_text()
    for name, info in Settings.model_fields.items():
        assert f"| `{info.alias or f'KUBEDIFFUSION_{name.upper()}'}` |" in settings


def test_every_example_is_shown(folder: Path) -> None:
    shown = "".join(page.read_text() for page in folder.glob("pages/docs/**/*.md"))
    examples = sorted(path.name for path in (REPOSITORY / "deploy/examples").glob("*.yaml"))
    assert len(examples) >= 20
    assert [name for name in examples if f"deploy/examples/{name}" not in shown] == []
