"""What is generated: schemas that a CustomResourceDefinition takes, and files that equal the committed ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubediffusion.resources.crds.definitions import diffusion_model_crd, generation_job_crd, lora_adapter_crd
from kubediffusion.resources.crds.main import main, render
from kubediffusion.resources.crds.structural_schema import structural_schema
from kubediffusion.resources.generation_job import GenerationJobSpec
from kubediffusion.resources.schema import Schema

CHART = Path(__file__).parents[3] / "charts" / "kubediffusion"
DEFINITIONS = {
    "GenerationJob": generation_job_crd(),
    "DiffusionModel": diffusion_model_crd(),
    "LoRAAdapter": lora_adapter_crd(),
}
NO_PART_OF_THE_DIALECT = {"$ref", "$defs", "title", "allOf", "oneOf", "const", "examples", "exclusiveMinimum"}
"""Of JSON Schema, not of structural schemas (or not of use there)."""
THE_SERVERS_OWN = {".apiVersion", ".kind", ".metadata"}


def version(kind: str) -> Any:
    (only,) = DEFINITIONS[kind]["spec"]["versions"]
    return only


def nodes(kind: str) -> list[Any]:
    """Every schema node with its path."""

    def walk(node: Any, path: Any) -> Iterator[Any]:
        yield path, node
        for name, part in node.get("properties", {}).items():
            yield from walk(part, f"{path}.{name}")
        if "items" in node:
            yield from walk(node["items"], f"{path}[]")
        if isinstance(node.get("additionalProperties"), dict):
            yield from walk(node["additionalProperties"], f"{path}{{}}")

    return list(walk(version(kind)["schema"]["openAPIV3Schema"], ""))


def at(kind: str, path: Any) -> Any:
    return dict(nodes(kind))[path]


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_the_schema_is_structural(kind: str) -> None:
    for path, node in nodes(kind):
        assert not NO_PART_OF_THE_DIALECT & node.keys(), path
        integer_or_string = node.get("x-kubernetes-int-or-string", False)
        assert ("type" in node) is not integer_or_string, path
        assert node.get("type") != "null", path
        assert ("anyOf" in node) is integer_or_string, path
        # Unknown fields are refused unless a part of the Pod API is passed through.
        if node.get("type") == "object" and path not in THE_SERVERS_OWN:
            assert {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"} & node.keys(), path


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_every_field_is_described(kind: str) -> None:
    undescribed = [
        path
        for path, node in nodes(kind)
        if not path.endswith(("[]", "{}")) and path not in THE_SERVERS_OWN and not node.get("description")
    ]
    assert undescribed == []


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_printer_columns_and_selectable_fields_name_fields_that_exist(kind: str) -> None:
    known = {path for path, _ in nodes(kind)} | {".metadata.creationTimestamp"}
    paths = [column["jsonPath"] for column in version(kind)["additionalPrinterColumns"]]
    columns = [path.split("[?")[0].replace("[0]", "[]") for path in paths]
    fields = [field["jsonPath"] for field in version(kind).get("selectableFields", [])]
    assert not {*columns, *fields} - known


def test_kubectl_shows_what_a_person_asks_first() -> None:
    shown = [c["name"] for c in version("GenerationJob")["additionalPrinterColumns"] if not c.get("priority")]
    assert shown == ["Model", "Phase", "Progress", "Worker", "Age"]


def test_jobs_can_be_selected_by_worker_phase_model_and_webhook() -> None:
    fields = [field["jsonPath"] for field in version("GenerationJob")["selectableFields"]]
    assert fields == [".status.worker", ".status.phase", ".spec.model", ".spec.webhook.url"]


def test_a_prompt_is_all_that_a_job_must_have() -> None:
    assert at("GenerationJob", ".spec")["required"] == ["prompt"]
    assert at("GenerationJob", "")["required"] == ["spec"]


def test_status_is_pending_from_the_first_moment() -> None:
    assert at("GenerationJob", ".status")["default"] == {"phase": "Pending", "attempt": 0, "retries": 0}


def test_every_field_of_a_job_is_either_mutable_or_guarded() -> None:
    rules = at("GenerationJob", ".spec")["x-kubernetes-validations"]
    (guard,) = [rule["rule"] for rule in rules if "cannot be changed" in rule.get("messageExpression", "")]
    guarded = set(re.findall(r"\bself\.(\w+) == oldSelf\.\1\b", guard))
    mutable = {GenerationJobSpec.model_fields[name].alias for name in GenerationJobSpec.MUTABLE}
    assert guarded == set(at("GenerationJob", ".spec")["properties"]) - mutable


def test_a_union_that_no_structural_schema_has_is_refused_when_generating() -> None:
    class Odd(Schema):
        value: int | list[str]

    with pytest.raises(TypeError, match="no such union"):
        structural_schema(Odd)


@pytest.mark.parametrize("path", render())
def test_the_committed_files_are_the_generated_ones(path: Any) -> None:
    assert (CHART / path).read_text() == render()[path], "run `make generate` and commit the result"


def test_what_is_generated_is_valid_yaml_of_what_was_meant() -> None:
    files = render()
    assert list(yaml.safe_load_all(files["crds/generationjobs.yaml"])) == [DEFINITIONS["GenerationJob"]]
    assert list(yaml.safe_load_all(files["crds/diffusionmodels.yaml"])) == [DEFINITIONS["DiffusionModel"]]
    assert list(yaml.safe_load_all(files["crds/loraadapters.yaml"])) == [DEFINITIONS["LoRAAdapter"]]


def generate(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Any:
    """Run the program; what it complains of, empty where all is well."""
    monkeypatch.setattr(sys, "argv", ["kubediffusion-crds", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return end.code
    return ""


def test_the_check_names_what_is_stale_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate(monkeypatch, tmp_path) == ""
    assert generate(monkeypatch, tmp_path, "--check") == ""
    stale = tmp_path / "crds" / "generationjobs.yaml"
    stale.write_text("old")
    complaint = generate(monkeypatch, tmp_path, "--check")
    assert str(stale) in complaint
    assert "make generate" in complaint
    assert stale.read_text() == "old"
