"""What the pages in docs/ promise, read from the pages themselves so that tests can hold the project to it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from kubediffusion.local.layout import REPOSITORY

Rights = set[tuple[str, str]]
"""Pairs of a resource, as `kubectl` names it with its group, and a verb."""


def page(name: str) -> str:
    """Text of a page."""
    return (REPOSITORY / "docs" / f"{name}.md").read_text()


def section(name: str, heading: str) -> str:
    """What stands on a page below a heading of the second level.

    Raises:
        KeyError: The page has no such heading.
    """
    _, found, rest = page(name).partition(f"\n## {heading}\n")
    if not found:
        raise KeyError(heading)
    return rest.partition("\n## ")[0]


def table(name: str, heading: str, number: int = 0) -> list[list[str]]:
    """Cells of the rows of a section's table, its head left out; the first table unless another is asked for."""
    tables = re.findall(r"(?:^\|.*\|\n)+", section(name, heading), re.MULTILINE)
    rows = tables[number].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def code(cell: str) -> list[str]:
    """Words of a cell that are set as code."""
    return re.findall(r"`([^`]+)`", cell)


def rights(account: str) -> Rights:
    """Rights of a service account, from the table under "Who may do what".

    Raises:
        KeyError: The table does not know it.
    """
    return _rights_of(0)[account]


def rights_everywhere(account: str) -> Rights:
    """Rights of a service account in every namespace, from the second table there; none for most."""
    return _rights_of(1).get(account, set())


def values() -> list[dict[str, Any]]:
    """The chart's values that the installation's page shows."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", page("install"), re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


def manifests() -> list[dict[str, Any]]:
    """The project's objects that the installation's page has people apply; those of other projects are left out."""
    blocks = re.findall(r"<<EOF\n(.*?)^EOF$", page("install"), re.MULTILINE | re.DOTALL)
    objects = [found for block in blocks for found in yaml.safe_load_all(block)]
    return [found for found in objects if found["apiVersion"].startswith("kubediffusion.io/")]


def _rights_of(number: int) -> dict[str, Rights]:
    found: dict[str, Rights] = {}
    account = ""
    for who, resources, verbs, _ in table("install", "Who may do what", number):
        account = who.strip("`") or account
        found.setdefault(account, set()).update((what, verb) for what in code(resources) for verb in verbs.split())
    return found
