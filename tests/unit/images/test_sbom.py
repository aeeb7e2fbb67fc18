"""The bill of materials, made of this very environment: images run the same program inside."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest

from kubediffusion.local.layout import REPOSITORY

IMAGE, VERSION = "registry.example.com/kubediffusion-api", "0.1.0"


@pytest.fixture(scope="module")
def bill() -> Any:
    program = (REPOSITORY / "deploy" / "images" / "sbom.py").read_text()
    answer = subprocess.run(
        [sys.executable, "-", IMAGE, VERSION], input=program, capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


def test_it_says_what_it_is_of(bill: Any) -> None:
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert bill["serialNumber"].startswith("urn:uuid:")
    assert bill["metadata"]["component"] | {"bom-ref": IMAGE} == {
        "type": "container",
        "bom-ref": IMAGE,
        "name": IMAGE,
        "version": VERSION,
    }


def test_it_lists_each_component_once(bill: Any) -> None:
    references = [component["bom-ref"] for component in bill["components"]]
    assert references == sorted(set(references))
    for component in bill["components"]:
        assert component["type"] in {"application", "library"}
        assert component["name"]
        assert component["purl"].startswith(("pkg:pypi/", "pkg:deb/", "pkg:generic/"))


def test_it_lists_python_and_every_distribution(bill: Any) -> None:
    listed = {component["purl"] for component in bill["components"]}
    assert f"pkg:generic/python@{platform.python_version()}" in listed
    for name in ("pydantic", "kubediffusion-api", "kubediffusion-resources"):
        assert f"pkg:pypi/{name}@{metadata.version(name)}" in listed
