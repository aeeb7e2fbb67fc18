"""No text of another party is too long for a status: it is cut where the resource is built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, get_args

import pytest
from annotated_types import MaxLen
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from kubediffusion.resources.conditions import ConditionStatus, with_condition
from kubediffusion.resources.crds.definitions import definitions
from kubediffusion.resources.diffusion_model import DiffusionModelStatus
from kubediffusion.resources.generation_job import GenerationJobStatus, JobError
from kubediffusion.resources.lora_adapter import LoRAAdapterStatus
from kubediffusion.resources.schema import Schema
from kubediffusion.resources.testing import NOW
from kubediffusion.resources.texts import MAX_MESSAGE, MAX_NOTE, shorten, shorten_note


def parts(annotation: Any) -> Iterator[type[Schema]]:
    """Every part of a resource that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        yield annotation
        for field in annotation.model_fields.values():
            yield from parts(field.annotation)
    for argument in get_args(annotation):
        yield from parts(argument)


def bounded(status: type[Schema]) -> dict[str, tuple[Any, int]]:
    """Every text field of a status that has a bound: its type, and the bound. One with a pattern is no free text."""
    fields = {}
    for part in parts(status):
        for name, field in part.model_fields.items():
            if any(getattr(each, "pattern", None) for each in field.metadata):
                continue
            for bound in (each for each in field.metadata if isinstance(each, MaxLen)):
                fields[f"{part.__name__}.{name}"] = Annotated[field.annotation, *field.metadata], bound.max_length
    return fields


def bounds(node: Any) -> Iterator[int]:
    """Every ``maxLength`` of a schema's free texts."""
    if isinstance(node, dict):
        if isinstance(node.get("maxLength"), int) and "pattern" not in node:
            yield node["maxLength"]
        for part in node.values():
            yield from bounds(part)


STATUSES: dict[str, type[Schema]] = {
    "GenerationJob": GenerationJobStatus,
    "DiffusionModel": DiffusionModelStatus,
    "LoRAAdapter": LoRAAdapterStatus,
}
FIELDS = {name: field for status in STATUSES.values() for name, field in bounded(status).items()}


@pytest.mark.parametrize("crd", definitions(), ids=lambda crd: str(crd["spec"]["names"]["kind"]))
def test_every_bound_of_a_status_is_one_of_a_field_below(crd: dict[str, Any]) -> None:
    (version,) = crd["spec"]["versions"]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    known = bounded(STATUSES[crd["spec"]["names"]["kind"]])
    assert sorted(bounds(status)) == sorted(most for _, most in known.values())
    assert known


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("letter", ["x", "ü", "🦊"])
def test_a_text_is_cut_to_its_bound_with_an_ellipsis(field: str, letter: str) -> None:
    kind, most = FIELDS[field]
    adapter = TypeAdapter(kind)
    assert adapter.validate_python(letter * most) == letter * most
    assert adapter.validate_python(letter * (most + 1)) == letter * (most - 1) + "…"
    assert adapter.validate_python(letter * 400_000) == letter * (most - 1) + "…"


def test_a_jobs_error_and_warnings_are_cut_too() -> None:
    status = GenerationJobStatus(error=JobError(code="Internal", message="x" * 100_000), warnings=("y" * 100_000,))
    assert status.error is not None
    assert (len(status.error.message), len(status.warnings[0])) == (MAX_MESSAGE, MAX_NOTE)


def test_a_message_that_was_cut_is_no_news_the_second_time() -> None:
    first = with_condition((), "Available", ConditionStatus.FALSE, "LoadFailed", "x" * 100_000, NOW)
    assert with_condition(first, "Available", ConditionStatus.FALSE, "LoadFailed", "x" * 100_000, NOW) is first


@given(st.text(st.characters(exclude_categories=())), st.integers(1, 20))
def test_a_text_that_was_cut_fits_and_can_be_sent(text: str, most: int) -> None:
    short = shorten(text, most)
    assert len(short) <= most
    json.dumps(short, ensure_ascii=False).encode()
    assert shorten(short, most) == short


@pytest.mark.parametrize("letter", ["x", "ü", "🦊"])
def test_an_events_note_fits_in_bytes(letter: str) -> None:
    fits = letter * (MAX_NOTE // len(letter.encode()))
    assert shorten_note(fits) == fits
    note = shorten_note(letter * MAX_NOTE + "x")
    assert note == letter * note.count(letter) + "…"
    assert MAX_NOTE - 4 < len(note.encode()) <= MAX_NOTE
