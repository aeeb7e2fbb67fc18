"""The published examples are taken by the API server as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import documented
from kubediffusion.local.testing import Namespace

EXAMPLES = Path(__file__).parents[3] / "deploy" / "examples"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_an_example_is_taken(namespace: Namespace, example: Path) -> None:
    namespace.kubectl("create", "--validate=strict", "--dry-run=server", f"--filename={example}")


def test_what_the_installation_s_page_applies_is_taken(namespace: Namespace) -> None:
    assert documented.manifests()
    for manifest in documented.manifests():
        namespace.kubectl("create", "--validate=strict", "--dry-run=server", "--filename=-", stdin=json.dumps(manifest))
