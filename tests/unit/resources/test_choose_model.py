"""Which model a job means."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from kubediffusion.resources.conditions import ConditionStatus, ModelConditionType, with_condition
from kubediffusion.resources.diffusion_model import DiffusionModel, DiffusionModelStatus, choose_model
from kubediffusion.resources.testing import NOW, model


def models(*items: Any) -> Any:
    return {item.name: item for item in items}


def made(item: Any, hours_ago: Any) -> Any:
    created = NOW - dt.timedelta(hours=hours_ago)
    return item.model_copy(update={"metadata": item.metadata.model_copy(update={"creation_timestamp": created})})


def chosen(there: dict[str, DiffusionModel], name: str | None) -> str:
    choice = choose_model(there, name)
    assert choice is not None
    return choice.name


def test_a_name_means_the_model_of_that_name() -> None:
    there = models(model("a"), model("b", default=False))
    assert chosen(there, "b") == "b"
    assert choose_model(there, "c") is None


def test_no_name_means_the_default_model() -> None:
    assert chosen(models(model("a", default=False), model("b")), None) == "b"


def test_without_a_default_no_name_means_none() -> None:
    assert choose_model(models(model("a", default=False)), None) is None
    assert choose_model({}, None) is None


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_defaults_the_newest_is_meant(order: int) -> None:
    items = [made(model("old"), 5), made(model("new"), 1)][::order]
    assert chosen(models(*items), None) == "new"


@pytest.mark.parametrize("order", [1, -1])
def test_of_equally_old_defaults_the_first_by_name_is_meant(order: int) -> None:
    items = [made(model("a"), 1), made(model("b"), 1)][::order]
    assert chosen(models(*items), None) == "a"


def test_only_the_word_true_makes_a_default() -> None:
    annotated = model("a")
    metadata = annotated.metadata.model_copy(update={"annotations": {"kubediffusion.io/is-default": "false"}})
    assert not annotated.model_copy(update={"metadata": metadata}).is_default


@pytest.mark.parametrize("status", ConditionStatus)
def test_only_a_model_that_is_known_not_to_load_is_unavailable(status: ConditionStatus) -> None:
    conditions = with_condition((), ModelConditionType.AVAILABLE, status, "Reason", "", NOW)
    told = model().model_copy(update={"status": DiffusionModelStatus(conditions=conditions)})
    assert (told.unavailable is not None) is (status is ConditionStatus.FALSE)


def test_a_model_that_nobody_has_loaded_yet_is_not_unavailable() -> None:
    assert model().unavailable is None
