"""Images of one batch, each with its own adapters, are what diffusers makes with them loaded into its own layers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kubediffusion.worker.engine import ImageRequest
from kubediffusion.worker.engine.adapters import ImageAdapter
from kubediffusion.worker.execution.adapters.pipelines import denoisers, takes_adapters
from kubediffusion.worker.execution.continuous import ContinuousEngine
from unit.worker import lora_files
from unit.worker.families.family_rows import ROWS as FAMILY_ROWS
from unit.worker.families.family_rows import saved
from unit.worker.families.parity import FamilyRow, by_own_call, levels, run, step_engine
from unit.worker.worker_builders import image_request

WITHOUT = {"ovis-image"}
"""diffusers has no loader of adapters for them."""

ROWS = {row.name: row for row in FAMILY_ROWS if row.name not in WITHOUT}
SCALES = (1.0, 0.6)
MIXED: list[tuple[int, ...]] = [(), (0,), (1,), (0, 1)]

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]


@functools.cache
def built(name: str) -> tuple[Any, ContinuousEngine]:
    build = ROWS[name].build
    pipeline = saved(name) if build is None else build()
    return pipeline, step_engine(pipeline)


@pytest.fixture(params=list(ROWS))
def row(request: pytest.FixtureRequest) -> FamilyRow:
    return ROWS[request.param]


@pytest.fixture
def files(row: FamilyRow, tmp_path: Path) -> list[Path]:
    """Two adapters of different ranks, each for every linear layer and convolution of the denoiser."""
    pipeline, _ = built(row.name)
    return [lora_files.lora_of(pipeline, tmp_path / f"{seed}.safetensors", seed, 3 + seed) for seed in range(2)]


@pytest.fixture
def mixed(row: FamilyRow, files: list[Path]) -> list[ImageRequest]:
    """Images of one prompt: with no adapter, with the one, with the other, and with both."""
    _, engine = built(row.name)
    weights = [engine.read_adapter(file) for file in files]
    adapters = [ImageAdapter(read.digest, scale, read) for read, scale in zip(weights, SCALES, strict=True)]
    width, height = row.sizes[0]
    return [
        replace(
            image_request(index, "a cat", "a dog", steps=2, guidance=row.guidance[0], width=width, height=height),
            adapters=tuple(adapters[place] for place in places),
        )
        for index, places in enumerate(MIXED)
    ]


@pytest.fixture
def loaded(row: FamilyRow, files: list[Path]) -> Iterator[Any]:
    """The pipeline with both adapters in diffusers' own layers; taken out again afterwards."""
    pipeline, _ = built(row.name)
    for index, file in enumerate(files):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=f"a{index}")
    yield pipeline
    pipeline.unload_lora_weights()


def test_a_mixed_batch_makes_of_each_image_what_diffusers_makes_of_it_alone(
    row: FamilyRow, mixed: list[ImageRequest], request: pytest.FixtureRequest
) -> None:
    pipeline, engine = built(row.name)
    made = run(engine, mixed[0], joining={1: tuple(mixed[1:])})
    alone = [run(engine, image)[image.id.index] for image in mixed]
    assert levels(made[0], by_own_call(pipeline, row, mixed[0])) <= 1
    assert levels(made[1], by_own_call(pipeline, row, mixed[1])) > 5
    pipeline = request.getfixturevalue("loaded")
    for image, places in zip(mixed[1:], MIXED[1:], strict=True):
        pipeline.set_adapters([f"a{place}" for place in places], [SCALES[place] for place in places])
        expected = by_own_call(pipeline, row, image)
        assert levels(made[image.id.index], expected) <= 1
        assert levels(alone[image.id.index], expected) <= 1


def test_a_mates_adapters_change_no_bit_of_an_image(row: FamilyRow, mixed: list[ImageRequest]) -> None:
    _, engine = built(row.name)
    none, first, second, both = mixed
    for image in (none, first):
        pictures = {
            run(engine, image, replace(mate, id=second.id))[image.id.index].rgb for mate in (first, second, both)
        }
        assert len(pictures) == 1


@pytest.mark.parametrize("name", sorted(row.name for row in FAMILY_ROWS))
def test_who_takes_adapters_is_known(name: str) -> None:
    row = next(row for row in FAMILY_ROWS if row.name == name)
    pipeline = saved(name) if row.build is None else row.build()
    assert takes_adapters(pipeline) == (name not in WITHOUT)
    assert bool(denoisers(pipeline)) == (name not in WITHOUT)
