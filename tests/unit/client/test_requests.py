"""From the words of whoever asks to the fields of a job's spec."""

from __future__ import annotations

import pytest

from kubediffusion.client.errors import InvalidRequestError
from kubediffusion.client.requests import SHORT_WORDS, Spec, parse_adapter, parse_size, set_field, snake_case, spec_of
from kubediffusion.resources.generation_job import GenerationJobSpec


def test_short_words_are_those_of_fields() -> None:
    assert set(SHORT_WORDS.values()) <= GenerationJobSpec.model_fields.keys()
    assert not SHORT_WORDS.keys() & GenerationJobSpec.model_fields.keys()


def test_every_field_is_known_by_its_name_in_manifests() -> None:
    for name, field in GenerationJobSpec.model_fields.items():
        assert snake_case(field.alias or "") == name


def test_a_whole_spec_is_changed_by_the_other_arguments() -> None:
    whole = GenerationJobSpec(prompt="a fox", num_images=2, cancel=True, suspend=True)
    assert spec_of(whole, {"count": 3, "seed": None}, (64, 128)) == {
        "prompt": "a fox", "num_images": 3, "width": 64, "height": 128,
    }  # fmt: skip


@pytest.mark.parametrize(("size", "pixels"), [("512x768", (512, 768)), ("256", (256, 256)), ((64, 72), (64, 72))])
def test_sizes(size: str | tuple[int, int], pixels: tuple[int, int]) -> None:
    assert parse_size(size) == pixels


@pytest.mark.parametrize("size", ["", "x", "512x", "axb", "-1x5", "1x2x3"])
def test_no_sizes(size: str) -> None:
    with pytest.raises(InvalidRequestError, match="512x768"):
        parse_size(size)


@pytest.mark.parametrize(
    ("assignment", "spec"),
    [
        ("spec.numImages=2", {"num_images": 2}),
        ("num_images=2", {"num_images": 2}),
        ("steps=2", {"num_inference_steps": 2}),
        ("deterministic=true", {"deterministic": True}),
        ("spec.acceleration.featureCaching.interval=3", {"acceleration": {"feature_caching": {"interval": 3}}}),
        ("acceleration={}", {"acceleration": {}}),
        ("negativePrompt='a=b, c'", {"negative_prompt": "a=b, c"}),
    ],
)
def test_any_field_is_set(assignment: str, spec: Spec) -> None:
    found: Spec = {}
    set_field(found, assignment)
    assert found == spec


@pytest.mark.parametrize("assignment", ["seed", "=3", "spec.=3", "a..b=3", "seed=[", "prompt.x=3"])
def test_no_assignments(assignment: str) -> None:
    with pytest.raises(InvalidRequestError):
        set_field({"prompt": "a fox"}, assignment)


@pytest.mark.parametrize(
    ("text", "adapter"),
    [
        ("ink", {"name": "ink"}),
        ("ink:0.8", {"name": "ink", "scale": 0.8}),
        ("ink:-1", {"name": "ink", "scale": -1.0}),
    ],
)
def test_an_adapter_is_named_with_its_scale_or_without(text: str, adapter: dict[str, object]) -> None:
    assert parse_adapter(text) == adapter


@pytest.mark.parametrize("text", ["ink:", "ink:strong", "ink:1:2"])
def test_a_scale_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="write NAME or NAME:SCALE"):
        parse_adapter(text)
