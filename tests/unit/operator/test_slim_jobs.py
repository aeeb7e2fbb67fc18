"""What the operator keeps of a job, and how a recipe gets the negative prompt that it does not keep."""

from __future__ import annotations

import sys

import pytest

from kubediffusion.operator.slim_jobs import CUT_PROMPT, LONGEST_NEGATIVE_PROMPT, lacks_prompt, slim_job
from kubediffusion.resources.generation_job import MAX_PROMPT, GenerationJob
from kubediffusion.resources.merge_patch import merge_patch
from kubediffusion.resources.parameters import resolve_parameters
from kubediffusion.resources.testing import job, model

LONG = "\N{FOX FACE}" * MAX_PROMPT


def with_negative(text: str | None) -> GenerationJob:
    found = job("a")
    return found.model_copy(update={"spec": found.spec.model_copy(update={"prompt": LONG, "negative_prompt": text})})


@pytest.mark.parametrize("text", [None, "", "blurry", "x" * LONGEST_NEGATIVE_PROMPT])
def test_a_short_negative_prompt_is_kept(text: str | None) -> None:
    slim = slim_job(with_negative(text))
    assert slim.spec.negative_prompt == text
    assert not lacks_prompt(slim, resolve_parameters(slim.spec, model("m"), 1))


def test_a_long_one_is_not_kept_and_a_recipe_that_needs_it_says_so() -> None:
    slim = slim_job(with_negative(LONG))
    assert sys.getsizeof(slim.spec.negative_prompt) < 100
    recipe = resolve_parameters(slim.spec, model("m"), 1)
    assert lacks_prompt(slim, recipe)
    assert not lacks_prompt(slim, None)


def test_a_recipe_that_is_written_already_is_neither_asked_for_nor_changed() -> None:
    whole = with_negative(LONG)
    recipe = resolve_parameters(whole.spec, model("m"), 1)
    slim = slim_job(whole.model_copy(update={"status": whole.status.model_copy(update={"parameters": recipe})}))
    assert slim.status.parameters is not None
    assert slim.status.parameters.negative_prompt == CUT_PROMPT
    assert not lacks_prompt(slim, slim.status.parameters)
    later = slim.status.model_copy(update={"retries": 1})
    assert merge_patch(slim.status.to_wire(), later.to_wire()) == {"retries": 1}
