"""docs/operations.md knows every reason that the project gives, and says what to do about each."""

from __future__ import annotations

import re

import pytest
import yaml

import documented
from kubediffusion.local.layout import CHART
from kubediffusion.operator.events import PARAMETERS_ADJUSTED
from kubediffusion.operator.image_releases import IMAGES_HELD, IMAGES_RETAINED
from kubediffusion.resources.conditions import (
    REFUSED_ADAPTER,
    AdapterConditionType,
    AdapterReason,
    ConditionStatus,
    EngineReason,
    JobConditionType,
    JobReason,
    ModelConditionType,
    ModelReason,
    WaitingReason,
)
from kubediffusion.resources.failures import ErrorCode

PAGE = "operations"
JOBS = "Conditions of a GenerationJob"
MODELS = f"Condition of a DiffusionModel: `{ModelConditionType.AVAILABLE}`"
ADAPTERS = f"Condition of a LoRAAdapter: `{AdapterConditionType.READY}`"
STARTS = "How far a worker's start is"
EVENTS = "Events"
ALERTS = "Alerts"


def conditions(status: str) -> set[str]:
    """Reasons of a job's conditions of that status, as the page has them."""
    return {
        reason
        for condition, reasons, *_ in documented.table(PAGE, JOBS)
        if status in condition
        for reason in documented.code(reasons)
    }


def test_every_reason_why_a_job_waits() -> None:
    assert conditions(f"{JobConditionType.SCHEDULED}={ConditionStatus.FALSE}") == set(WaitingReason)


def test_every_other_reason_of_a_job_s_conditions() -> None:
    said = {r for _, reasons, *_ in documented.table(PAGE, JOBS) for r in documented.code(reasons)}
    assert said == {*WaitingReason, *JobReason}


def test_every_condition_of_a_job() -> None:
    said = {word.partition("=")[0] for cell, *_ in documented.table(PAGE, JOBS) for word in documented.code(cell)}
    assert said == set(JobConditionType)


def test_every_error_code() -> None:
    assert {c for cell, *_ in documented.table(PAGE, JOBS, 1) for c in documented.code(cell)} == set(ErrorCode)


def test_every_reason_of_a_model() -> None:
    assert {r for _, reasons, *_ in documented.table(PAGE, MODELS) for r in documented.code(reasons)} == set(
        ModelReason
    )


def test_every_reason_of_an_adapter() -> None:
    said = [r for _, reasons, *_ in documented.table(PAGE, ADAPTERS) for r in documented.code(reasons)]
    assert said == list(AdapterReason)
    lasting = said[said.index(AdapterReason.NOT_SAFETENSORS) :]
    assert set(lasting) == REFUSED_ADAPTER


def test_every_stage_of_a_worker_s_start_in_its_order() -> None:
    said = [reason for cell, *_ in documented.table(PAGE, STARTS) for reason in documented.code(cell)]
    assert [reason for reason in said if reason not in set(WaitingReason)] == list(EngineReason)
    assert set(said) <= {*WaitingReason, *EngineReason}


def test_events_have_reasons_that_are_given() -> None:
    text = documented.section(PAGE, EVENTS)
    said = {word for word in documented.code(text) if re.fullmatch(r"(?:[A-Z][a-z]+){2,}|Retrying|Cancelled", word)}
    assert {
        WaitingReason.RETRYING,
        WaitingReason.WORKER_REFUSED,
        JobReason.CANCELLED,
        PARAMETERS_ADJUSTED,
        IMAGES_HELD,
        IMAGES_RETAINED,
    } <= said
    assert said <= {
        *WaitingReason,
        *JobReason,
        *ModelReason,
        *ErrorCode,
        PARAMETERS_ADJUSTED,
        IMAGES_HELD,
        IMAGES_RETAINED,
    }


def test_every_alert() -> None:
    groups = yaml.safe_load((CHART / "files" / "monitoring" / "alerts.yaml").read_text())
    said = [alert for cell, *_ in documented.table(PAGE, ALERTS) for alert in documented.code(cell)]
    assert said == [rule["alert"] for group in groups for rule in group["rules"]]


@pytest.mark.parametrize(
    ("heading", "number"), [(JOBS, 0), (JOBS, 1), (MODELS, 0), (ADAPTERS, 0), (EVENTS, 0), (ALERTS, 0)]
)
def test_each_says_what_to_do(heading: str, number: int) -> None:
    for row in documented.table(PAGE, heading, number):
        assert all(row), row
