"""Which model a job means."""

from __future__ import annotations

import datetime as dt

import pytest

from kubediffusion.resources.conditions import ConditionStatus, ModelConditionType, with_condition
from kubediffusion.resources.diffusion_model import DiffusionModelStatus, choose_model
from kubediffusion.resources.testing import NOW, model


def models(*items):
    return {item.name: item for item in items}


def made(item, hours_ago):
    created = NOW - dt.timedelta(hours=hours_ago)
    return item.model_copy(update={"metadata": item.metadata.model_copy(update={"creation_timestamp": created})})


def test_a_name_means_the_model_of_that_name():
    there = models(model("a"), model("b", default=False))
    assert choose_model(there, "b").name == "b"
    assert choose_model(there, "c") is None


def test_no_name_means_the_default_model():
    assert choose_model(models(model("a", default=False), model("b")), None).name == "b"


def test_without_a_default_no_name_means_none():
    assert choose_model(models(model("a", default=False)), None) is None
    assert choose_model({}, None) is None


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_defaults_the_newest_is_meant(order):
    items = [made(model("old"), 5), made(model("new"), 1)][::order]
    assert choose_model(models(*items), None).name == "new"


@pytest.mark.parametrize("order", [1, -1])
def test_of_equally_old_defaults_the_first_by_name_is_meant(order):
    items = [made(model("a"), 1), made(model("b"), 1)][::order]
    assert choose_model(models(*items), None).name == "a"


def test_only_the_word_true_makes_a_default():
    annotated = model("a")
    metadata = annotated.metadata.model_copy(update={"annotations": {"kubediffusion.io/is-default": "false"}})
    assert not annotated.model_copy(update={"metadata": metadata}).is_default


@pytest.mark.parametrize("status", ConditionStatus)
def test_only_a_model_that_is_known_not_to_load_is_unavailable(status):
    conditions = with_condition((), ModelConditionType.AVAILABLE, status, "Reason", "", NOW)
    told = model().model_copy(update={"status": DiffusionModelStatus(conditions=conditions)})
    assert (told.unavailable is not None) is (status is ConditionStatus.FALSE)


def test_a_model_that_nobody_has_loaded_yet_is_not_unavailable():
    assert model().unavailable is None
