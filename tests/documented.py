"""What docs/install.md promises, read from the page itself so that tests can hold the project to it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from kubediffusion.local.layout import REPOSITORY

PAGE = (REPOSITORY / "docs" / "install.md").read_text()

Rights = set[tuple[str, str]]
"""Pairs of a resource, as `kubectl` names it with its group, and a verb."""


def rights(account: str) -> Rights:
    """Rights of a service account, from the table under "Who may do what".

    Raises:
        KeyError: The table does not know it.
    """
    return _all_rights()[account]


def values() -> list[dict[str, Any]]:
    """The chart's values that the page shows."""
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]


def _all_rights() -> dict[str, Rights]:
    _, _, section = PAGE.partition("## Who may do what")
    section, _, _ = section.partition("\n## ")
    found: dict[str, Rights] = {}
    account = ""
    for row in re.findall(r"^\| (.*) \|$", section, re.MULTILINE)[2:]:
        who, resources, verbs, _ = (cell.strip() for cell in row.split(" | "))
        account = who.strip("`") or account
        pairs = {(resource.strip("`"), verb) for resource in resources.split(", ") for verb in verbs.split()}
        found.setdefault(account, set()).update(pairs)
    return found
