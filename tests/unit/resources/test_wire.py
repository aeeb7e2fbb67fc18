"""The wire: what is sent, what is read, and the smallest patch between two states."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kubediffusion.resources.conditions import ConditionStatus
from kubediffusion.resources.generation_job import (
    GenerationJob,
    GenerationJobSpec,
    GenerationJobStatus,
    JobProgress,
    Phase,
)
from kubediffusion.resources.merge_patch import merge_patch
from kubediffusion.resources.objects import ObjectMeta
from kubediffusion.resources.schema import format_time
from kubediffusion.resources.testing import job

scalars = st.booleans() | st.integers(2, 9) | st.text(max_size=3)
values = st.recursive(
    scalars | st.lists(scalars, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=6,
)
documents = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)
moments = st.datetimes(
    dt.datetime(1970, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    dt.datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=45))]),
)


def applied(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2, word for word."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = applied(result.get(name), value)
    return result


@given(documents, documents)
def test_the_patch_turns_the_old_object_into_the_new_one(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert applied(old, merge_patch(old, new)) == new


@given(documents)
def test_there_is_nothing_to_patch_between_equals(document: dict[str, Any]) -> None:
    assert merge_patch(document, json.loads(json.dumps(document))) == {}


@given(documents, documents)
def test_the_patch_touches_only_what_differs(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = merge_patch(old, new)
    assert set(patch) == {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}


def test_a_list_is_replaced_whole() -> None:
    assert merge_patch({"a": [1, 2]}, {"a": [1, 3]}) == {"a": [1, 3]}


@given(moments)
def test_a_moment_survives_the_wire_to_the_microsecond(moment: dt.datetime) -> None:
    read = ObjectMeta.from_wire({"creationTimestamp": format_time(moment)})
    assert read.creation_timestamp == moment
    assert read.to_wire()["creationTimestamp"] == format_time(moment)


def test_a_moment_is_written_as_kubernetes_writes_a_micro_time() -> None:
    east = dt.timezone(dt.timedelta(hours=2))
    assert format_time(dt.datetime(2030, 1, 1, 14, 30, 5, 42, tzinfo=east)) == "2030-01-01T12:30:05.000042Z"


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError):
        ObjectMeta.from_wire({"creationTimestamp": "2030-01-01T12:00:00"})


def optional(strategy: Any) -> Any:
    return st.none() | strategy


words = st.text(st.characters(codec="utf-8"), max_size=4)
sizes = st.integers(8, 512).map(lambda n: n * 8)
seeds = st.integers(0, 2**63 - 1)
specs = st.fixed_dictionaries(
    {"prompt": words.filter(bool)},
    optional={
        "model": st.sampled_from(["emoji", "a" * 40]),
        "negative_prompt": words,
        "num_inference_steps": st.integers(1, 1000),
        "guidance_scale": st.floats(0, 50),
        "seed": seeds,
        "width": sizes,
        "num_images": st.integers(1, 16),
        "cancel": st.booleans(),
    },
).map(lambda fields: GenerationJobSpec(**fields))
conditions = st.fixed_dictionaries(
    {
        "type": words,
        "status": st.sampled_from(ConditionStatus),
        "reason": words,
        "message": words,
        "last_transition_time": moments,
    }
)
images = st.fixed_dictionaries(
    {
        "index": st.integers(0, 15),
        "uri": words,
        "sha256": st.sampled_from("0af").map(lambda digit: digit * 64),
        "bytes": st.integers(0, 2**40),
        "width": sizes,
        "height": sizes,
        "seed": seeds,
    }
)
parameters = st.fixed_dictionaries(
    {
        "model": words,
        "num_inference_steps": st.integers(1, 9),
        "guidance_scale": st.floats(0, 50),
        "seed": seeds,
        "num_images": st.integers(1, 4),
        "versions": optional(st.dictionaries(words, words, max_size=2)),
    }
)
statuses = st.fixed_dictionaries(
    {"phase": st.sampled_from(Phase)},
    optional={
        "conditions": st.lists(conditions, max_size=2),
        "worker": words,
        "attempt": st.integers(0, 9),
        "progress": st.builds(JobProgress.of, st.integers(0, 50), st.integers(0, 50)),
        "images": st.lists(images, max_size=2),
        "parameters": parameters,
        "queued_at": moments,
        "start_time": moments,
    },
).map(lambda fields: GenerationJobStatus(**fields))


@given(specs, statuses)
def test_a_job_comes_back_from_the_wire_as_it_was_sent(spec: GenerationJobSpec, status: GenerationJobStatus) -> None:
    sent = job(status=status).model_copy(update={"spec": spec})
    assert GenerationJob.from_wire(json.loads(json.dumps(sent.to_wire()))) == sent


@given(statuses, statuses)
def test_the_patch_between_two_statuses_leads_from_one_to_the_other(
    old: GenerationJobStatus, new: GenerationJobStatus
) -> None:
    patch = merge_patch(old.to_wire(), new.to_wire())
    assert GenerationJobStatus.from_wire(applied(old.to_wire(), patch)) == new


def test_the_wire_speaks_camel_case_and_leaves_out_what_has_no_value() -> None:
    spec = GenerationJobSpec(prompt="a fox", num_inference_steps=4)
    assert spec.to_wire() == {"prompt": "a fox", "numInferenceSteps": 4}


def test_a_field_of_a_newer_version_is_read_over() -> None:
    assert GenerationJobSpec.from_wire({"prompt": "a fox", "sharpness": 3}) == GenerationJobSpec(prompt="a fox")


def test_a_value_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        setattr(job().spec, "prompt", "another")  # noqa: B010 - mypy refuses the plain assignment, as it should


def test_of_two_states_of_an_object_the_one_of_the_higher_version_is_newer() -> None:
    assert ObjectMeta(resource_version="10").version > ObjectMeta(resource_version="9").version > ObjectMeta().version
