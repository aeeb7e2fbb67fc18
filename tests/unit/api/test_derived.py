"""A field of a resource is in the HTTP API too, or its absence has a reason."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from kubediffusion.api import model_schemas, translate
from kubediffusion.api.app import create_app
from kubediffusion.api.derived import RequestModel, ResponseModel, model_at, request_of, view_of
from kubediffusion.api.job_cache.records import StoredImage
from kubediffusion.api.job_events.states import NOT_TOLD, JobState
from kubediffusion.api.model_schemas import ModelDefaults, ModelLimits, ModelWorkers
from kubediffusion.api.schemas import (
    NOT_REQUESTED,
    NOT_SHOWN,
    ImageView,
    JobRequest,
    JobSummary,
    JobView,
    ParametersView,
    TimingsView,
)
from kubediffusion.api.schemas import JobError as JobErrorView
from kubediffusion.api.settings import Settings
from kubediffusion.resources.diffusion_model import DiffusionModelStatus, JobDefaults, JobLimits, WorkerCounts
from kubediffusion.resources.generation_job import (
    GenerationJobSpec,
    GenerationJobStatus,
    Image,
    JobError,
    Parameters,
    Timings,
)
from kubediffusion.resources.schema import Schema
from unit.api.api_builders import cached

RENAMED = {"start_time": "started_at", "completion_time": "completed_at"}
"""Fields of a job's status that the API has long shown under other names."""


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


@pytest.mark.parametrize("field", DiffusionModelStatus.model_fields)
def test_every_field_of_a_models_status_is_shown_or_has_a_reason(field: str) -> None:
    assert (field in schema_of("ModelView")["properties"]) != (field in model_schemas.NOT_SHOWN)


@pytest.mark.parametrize("field", JobView.model_fields)
def test_events_tell_every_field_of_the_view_or_have_a_reason(field: str) -> None:
    assert (field in JobState.model_fields) != (field in NOT_TOLD)


def test_of_an_image_the_cache_keeps_what_the_view_shows() -> None:
    kept = {field.name for field in fields(StoredImage)}
    assert kept == set(ImageView.model_fields) - {"path"} == set(Image.model_fields) - {"seed"}


@pytest.mark.parametrize(
    ("view", "source"),
    [
        (JobErrorView, JobError),
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


@view_of(Outer, parts={Inner: InnerView}, renamed={"maybe": "perhaps"}, without=("hidden",))
class MixedView(ResponseModel):
    """A view with fields of its own."""

    needed: str
    """In words."""
    own: int


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


def test_what_a_view_declares_stays_in_its_place_and_the_rest_comes_after_it() -> None:
    part = Outer(needed=1, inner_parts=(Inner(),), maybe=Inner(strength_factor=1))
    view = MixedView.model_validate({**dict(part), "needed": "one", "own": 2})
    assert view.model_dump_json() == (
        '{"needed":"one","own":2,"inner_parts":[{"strength_factor":0.5}],"perhaps":{"strength_factor":1.0}}'
    )
    assert MixedView.model_validate(view) == view
    shown = MixedView.model_json_schema(mode="serialization")
    assert list(shown["properties"]) == shown["required"] == ["needed", "own", "inner_parts", "perhaps"]
    assert shown["properties"]["needed"]["description"] == "In words."


class LaterStatus(GenerationJobStatus):
    """The status as it may be some day."""

    paused_seconds: float | None = None


@view_of(LaterStatus, parts={Parameters: ParametersView, Timings: TimingsView}, renamed=RENAMED, without=NOT_SHOWN)
class LaterView(JobSummary):
    """The view that is derived of it."""


def test_a_new_field_of_the_status_is_in_the_view_and_filled_without_an_edit() -> None:
    summary = translate.summary(cached(), 3)
    view = LaterView.model_validate({**dict(LaterStatus(paused_seconds=1.5, attempt=2)), **dict(summary)})
    assert view.model_dump() == summary.model_dump() | {
        "attempt": 2,
        "retries": 0,
        "parameters": None,
        "queued_at": None,
        "started_at": None,
        "completed_at": None,
        "timings": None,
        "webhook": None,
        "paused_seconds": 1.5,
    }


def test_the_model_under_a_path_is_found_through_unions_and_lists() -> None:
    assert model_at(OuterRequest, ["maybe"]) is InnerRequest
    assert model_at(OuterRequest, ["inner_parts"]) is InnerRequest
    assert model_at(OuterRequest, ["nothing", "at", "all"]) is OuterRequest
    assert set(model_at(JobRequest, ["acceleration", "guidance_interval"]).model_fields) == {"start", "stop"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"seed": True}, "seed"),
        ({"guidance_scale": False}, "guidance_scale"),
        ({"ttl_seconds_after_finished": False}, "ttl_seconds_after_finished"),
        ({"acceleration": {"feature_caching": {"interval": True}}}, "interval"),
        ({"deterministic": 0}, "deterministic"),
        ({"prompt_weighting": 1.0}, "prompt_weighting"),
    ],
)
def test_numbers_are_no_booleans_and_booleans_no_numbers(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        JobRequest.model_validate({"prompt": "a cat", **fields})
    assert [error["loc"][-1] for error in refused.value.errors()] == [field]
