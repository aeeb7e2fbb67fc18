"""A field of a resource is in the HTTP API too, or its absence has a reason."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from kubediffusion.api.app import create_app
from kubediffusion.api.derived import RequestModel, ResponseModel, model_at, request_of, view_of
from kubediffusion.api.model_schemas import ModelDefaults, ModelLimits, ModelWorkers
from kubediffusion.api.schemas import (
    NOT_REQUESTED,
    JobRequest,
    JobView,
    ParametersView,
    TimingsView,
)
from kubediffusion.api.settings import Settings
from kubediffusion.resources.diffusion_model import JobDefaults, JobLimits, WorkerCounts
from kubediffusion.resources.generation_job import GenerationJobSpec, GenerationJobStatus, Parameters, Timings
from kubediffusion.resources.schema import Schema

RENAMED = {"start_time": "started_at", "completion_time": "completed_at"}
"""Fields of a job's status that the API has long shown under other names."""

NOT_SHOWN = {
    "conditions": "for kubectl; what a client needs of them is in `waiting`, `phase` and `error`",
    "suspects": "how the operator searches for the job that its worker died of; `retries` is what counts for a client",
    "observed_generation": "for controllers: which spec the status speaks of",
}


def schema_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = create_app(Settings()).openapi()["components"]["schemas"][name]
    return found


@pytest.mark.parametrize("field", GenerationJobSpec.model_fields)
def test_every_field_of_the_spec_can_be_requested_or_has_a_reason(field: str) -> None:
    requested = schema_of("JobRequest")["properties"]
    assert (field in requested) != (field in NOT_REQUESTED)
    if field in requested:
        assert requested[field].get("description"), f"{field} has no description"


@pytest.mark.parametrize("field", GenerationJobStatus.model_fields)
def test_every_field_of_the_status_is_shown_or_has_a_reason(field: str) -> None:
    assert (RENAMED.get(field, field) in schema_of("JobView")["properties"]) != (field in NOT_SHOWN)


@pytest.mark.parametrize(
    ("view", "source"),
    [
        (ParametersView, Parameters),
        (TimingsView, Timings),
        (ModelLimits, JobLimits),
        (ModelDefaults, JobDefaults),
        (ModelWorkers, WorkerCounts),
    ],
)
def test_a_view_has_every_field_of_its_part(view: type[ResponseModel], source: type[Schema]) -> None:
    assert set(view.model_fields) == set(source.model_fields)


def test_a_request_is_shown_as_it_was_sent() -> None:
    assert JobView.model_fields["request"].annotation is JobRequest


class Inner(Schema):
    """A part of the part."""

    strength_factor: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How much, 0 to 1."""


class Outer(Schema):
    """A resource's part as it may be some day."""

    needed: Annotated[int, Field(ge=1)]
    """How many."""
    inner_parts: tuple[Inner, ...] = ()
    """Parts in a list."""
    maybe: Inner | None = None
    """A part that may be absent."""
    hidden: bool = False


@request_of(Inner)
class InnerRequest(RequestModel):
    """A part of a request."""


@request_of(Outer, parts={Inner: InnerRequest}, without=("hidden",))
class OuterRequest(RequestModel):
    """A request."""


@view_of(Inner)
class InnerView(ResponseModel):
    """A part of a view."""


@view_of(Outer, parts={Inner: InnerView})
class OuterView(ResponseModel):
    """A view."""


def test_a_new_field_is_in_requests_with_its_range_default_and_description() -> None:
    request = OuterRequest.model_validate({"needed": 2, "inner_parts": [{"strength_factor": 1}], "maybe": {}})
    assert request.model_dump() == {
        "needed": 2,
        "inner_parts": [{"strength_factor": 1.0}],
        "maybe": {"strength_factor": 0.5},
    }
    for wrong in ({}, {"needed": 0}, {"needed": 1, "hidden": True}, {"needed": 1, "maybe": {"strength_factor": 2}}):
        with pytest.raises(ValidationError):
            OuterRequest.model_validate(wrong)
    with pytest.raises(ValidationError):
        # camelCase is for manifests.
        InnerRequest.model_validate({"strengthFactor": 1})
    shown = OuterRequest.model_json_schema()
    assert (shown["required"], shown["properties"]["needed"]["description"]) == (["needed"], "How many.")
    assert shown["$defs"]["InnerRequest"]["properties"]["strength_factor"]["maximum"] == 1


def test_a_new_field_is_in_views_and_what_is_stored_stays_readable() -> None:
    out_of_range = Inner.model_construct(strength_factor=7.0)
    stored = Outer.model_construct(needed=-1, inner_parts=(out_of_range,), maybe=None, hidden=True)
    assert OuterView.model_validate(stored).model_dump() == {
        "needed": -1,
        "inner_parts": [{"strength_factor": 7.0}],
        "maybe": None,
        "hidden": True,
    }
    assert set(OuterView.model_json_schema()["required"]) == set(Outer.model_fields)


def test_the_model_under_a_path_is_found_through_unions_and_lists() -> None:
    assert model_at(OuterRequest, ["maybe"]) is InnerRequest
    assert model_at(OuterRequest, ["inner_parts"]) is InnerRequest
    assert model_at(OuterRequest, ["nothing", "at", "all"]) is OuterRequest
    assert set(model_at(JobRequest, ["acceleration", "guidance_interval"]).model_fields) == {"start", "stop"}
