"""Each family gives the images that its pipeline's own call gives, alone and beside others, to a level of 255."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

import pytest

from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.previewing import MOST_PIXELS
from kubediffusion.worker.execution.schedulers import Schedulers
from unit.worker.families.family_rows import ROWS as FAMILY_ROWS
from unit.worker.families.family_rows import saved
from unit.worker.families.parity import FamilyRow, by_own_call, levels, run, step_engine
from unit.worker.worker_builders import Recorder, image_request

ROWS = {row.name: row for row in FAMILY_ROWS}
LONG = "a very long text about a cat and a dog and a horse on a hill in the rain at night"

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    # diffusers' Chroma imports it from its old place.
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]


@functools.cache
def built(name: str) -> tuple[Any, ContinuousEngine]:
    build = ROWS[name].build
    pipeline = saved(name) if build is None else build()
    return pipeline, step_engine(pipeline)


@pytest.fixture(params=list(ROWS))
def row(request: pytest.FixtureRequest) -> FamilyRow:
    return ROWS[request.param]


@pytest.mark.parametrize("negative", [None, "a dog"])
def test_an_image_alone_is_what_the_pipelines_own_call_makes(row: FamilyRow, negative: str | None) -> None:
    pipeline, engine = built(row.name)
    for (index, (width, height)), steps in itertools.product(enumerate(row.sizes), row.steps):
        guidance = row.guidance[index]
        request = image_request(index, "a cat", negative, steps=steps, width=width, height=height, guidance=guidance)
        assert levels(run(engine, request)[index], by_own_call(pipeline, row, request)) <= 1


@pytest.mark.parametrize("negative", [None, "a dog"])
def test_one_batch_mixes_steps_guidance_prompts_and_seeds(row: FamilyRow, negative: str | None) -> None:
    pipeline, engine = built(row.name)
    width, height = row.sizes[0]
    first, second = row.guidance
    size = {"width": width, "height": height}
    requests = [
        image_request(0, "a cat", negative, steps=9, guidance=first, **size),
        image_request(1, LONG, negative and "x", steps=4, guidance=second, **size),
        image_request(2, "", negative, steps=6, guidance=first, **size),
        image_request(3, "a horse", negative and LONG, steps=5, guidance=second, **size),
    ]
    requests = [request for request in requests if engine.plan(request).key == engine.plan(requests[0]).key]
    assert len(requests) >= 2
    made = run(engine, *requests[:1], joining={3: tuple(requests[1:])})
    for request in requests:
        assert levels(made[request.id.index], by_own_call(pipeline, row, request)) <= 1


def test_an_image_without_guidance_is_what_the_pipelines_own_call_makes(row: FamilyRow) -> None:
    pipeline, engine = built(row.name)
    width, height = row.sizes[0]
    for index, guidance in enumerate((1.0, 0.0)):
        request = image_request(index, "a cat", None, steps=4, guidance=guidance, width=width, height=height)
        assert levels(run(engine, request)[index], by_own_call(pipeline, row, request)) <= 1


def test_further_schedulers_make_what_the_pipelines_own_call_makes(row: FamilyRow) -> None:
    pipeline, engine = built(row.name)
    own = pipeline.scheduler
    width, height = row.sizes[0]
    for index, name in enumerate(row.schedulers):
        request = image_request(index, "a cat", "a dog", steps=5, scheduler=name, width=width, height=height)
        made = run(engine, request)[index]
        assert made.scheduler == name
        try:
            pipeline.scheduler = Schedulers(own).get(name)
            expected = by_own_call(pipeline, row, replace(request, sampling=replace(request.sampling, scheduler=None)))
        finally:
            pipeline.scheduler = own
        assert levels(made, expected) <= 1


def test_a_deterministic_image_repeats_and_is_nearly_the_same(row: FamilyRow) -> None:
    pipeline, engine = built(row.name)
    width, height = row.sizes[0]
    request = image_request(0, "a cat", "a dog", steps=4, width=width, height=height, deterministic=True)
    assert not engine.plan(request).joins
    first = run(engine, request)[0]
    assert run(engine, request)[0] == first
    assert levels(first, by_own_call(pipeline, row, request)) <= 1


def test_previews_have_the_form_of_the_image_and_change_nothing(row: FamilyRow) -> None:
    _, engine = built(row.name)
    width, height = row.sizes[1]
    request = image_request(0, "a cat", steps=3, width=width, height=height)
    seen = Recorder(asked={0})
    engine.run((request,), seen)
    assert seen.previews[0]
    for preview in seen.previews[0]:
        assert preview.width * height == preview.height * width
        assert max(preview.width, preview.height) <= MOST_PIXELS
        assert len(preview.rgb) == preview.width * preview.height * 3
    assert seen.image(0) == run(engine, request)[0]
