"""Images of different sizes share a batch where the denoiser takes them side by side."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

from kubediffusion.worker.engine import BatchKey
from kubediffusion.worker.execution.continuous import ContinuousEngine
from unit.worker.families.family_rows import ROWS, saved
from unit.worker.families.parity import by_own_call, levels, run, step_engine
from unit.worker.worker_builders import Recorder, image_request

SIZES = ((64, 96), (96, 64), (56, 104), (48, 128))
"""Width and height of images of 384 tokens; the third has 364, which the transformer pads to as many."""

OTHER = (64, 64)
"""An image of fewer tokens."""

(ROW,) = (row for row in ROWS if row.name == "z-image-turbo")


@functools.cache
def built() -> tuple[Any, ContinuousEngine]:
    pipeline = saved(ROW.name)
    return pipeline, step_engine(pipeline)


@pytest.mark.parametrize(("guidance", "negative"), [(0.0, None), (4.0, None), (4.0, "a dog")])
def test_images_of_several_sizes_share_a_batch_and_are_what_each_is_alone(
    guidance: float, negative: str | None
) -> None:
    pipeline, engine = built()
    requests = [
        image_request(index, "a cat", negative, steps=4 + index, guidance=guidance, width=width, height=height)
        for index, (width, height) in enumerate(SIZES)
    ]
    assert len({engine.plan(request).key for request in requests}) == 1
    made = run(engine, *requests[:2], joining={2: tuple(requests[2:])})
    for request in requests:
        assert levels(made[request.id.index], by_own_call(pipeline, ROW, request)) <= 1
        alone = run(engine, request)[request.id.index]
        assert (alone.width, alone.height) == SIZES[request.id.index]


def test_each_image_of_a_batch_of_several_sizes_has_previews_of_its_own_form() -> None:
    _, engine = built()
    requests = [
        image_request(index, "a cat", steps=3, guidance=0.0, width=width, height=height)
        for index, (width, height) in enumerate(SIZES)
    ]
    seen = Recorder(asked={0, 1, 2, 3})
    engine.run(tuple(requests), seen)
    for index, (width, height) in enumerate(SIZES):
        assert seen.previews[index]
        assert all(preview.width * height == preview.height * width for preview in seen.previews[index])


def test_images_of_more_tokens_and_those_of_other_families_share_no_batch() -> None:
    _, engine = built()
    first, second = (image_request(0, width=width, height=height) for width, height in (SIZES[0], OTHER))
    assert engine.plan(first).key != engine.plan(second).key
    alone = replace(first, sampling=replace(first.sampling, deterministic=True))
    assert engine.plan(alone).key != engine.plan(first).key
    # Its attention turns all images by one table of positions.
    qwen = step_engine(saved("qwen-image"))
    keys = [qwen.plan(image_request(0, width=width, height=height)).key for width, height in SIZES[:2]]
    assert isinstance(keys[0], BatchKey)
    assert keys[0] != keys[1]
