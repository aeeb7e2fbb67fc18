"""The published examples are taken by the API server as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import documented
from kubediffusion.local.testing import Namespace
from kubediffusion.resources.generation_job import GenerationJobSpec

EXAMPLES = Path(__file__).parents[3] / "deploy" / "examples"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_an_example_is_taken(namespace: Namespace, example: Path) -> None:
    namespace.kubectl("create", "--validate=strict", "--dry-run=server", f"--filename={example}")


def test_the_full_example_has_every_field() -> None:
    full = yaml.safe_load((EXAMPLES / "generationjob-full.yaml").read_text())
    assert full["spec"].keys() == {info.alias for info in GenerationJobSpec.model_fields.values()}


def test_what_the_installation_s_page_applies_is_taken(namespace: Namespace) -> None:
    assert documented.manifests()
    for manifest in documented.manifests():
        namespace.kubectl("create", "--validate=strict", "--dry-run=server", "--filename=-", stdin=json.dumps(manifest))
