"""Steps of every family of transformers, compiled block by block: they compute what the step computes as it is written.

PyTorch traces as on a GPU, and generates no code.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kubediffusion.worker.engine import ImageRequest
from kubediffusion.worker.execution.compile.blocks import compiled_by_blocks, repeated_blocks
from kubediffusion.worker.execution.compile.functions import Function, compiled_for, name_of
from kubediffusion.worker.execution.slots import InputBatch
from unit.worker.families.family_rows import ROWS, saved
from unit.worker.families.parity import FamilyRow, step_engine
from unit.worker.worker_builders import image_request

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.usefixtures("without_gradients"),
    # diffusers' Chroma imports it from its old place.
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]


def step_of(pipeline: Any, request: ImageRequest) -> InputBatch:
    """Return a step of two slots, full of noise."""
    engine = step_engine(pipeline, 2)
    key = engine.family.batch_key(engine.family.key(request))
    slots = engine.prepared_batches.of(key).batch
    work = slots.input_batch(2)
    torch.manual_seed(0)
    for argument in work.arguments:
        for tensor in argument.values() if isinstance(argument, dict) else [argument]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                tensor.normal_()
    return work


@pytest.mark.parametrize("row", [row for row in ROWS if not row.schedulers], ids=lambda row: row.name)
def test_a_step_of_compiled_blocks_computes_what_the_step_computes(row: FamilyRow) -> None:
    pipeline = saved(row.name) if row.build is None else row.build()
    (width, height), guidance = row.sizes[0], row.guidance[0]
    work = step_of(pipeline, image_request(0, "a cat", "", guidance=guidance, width=width, height=height))
    assert work.by_blocks
    compiled: list[str] = []

    def compile_for(function: Function, given: tuple[Any, ...], kind: str) -> Function:
        compiled.append(name_of(function, given, kind))
        return compiled_for(function, given, "eager")

    step = compiled_by_blocks(work.function, work.copies(), compile_for)
    torch.testing.assert_close(step(*work.arguments), work.function(*work.arguments), atol=1e-4, rtol=1e-4)
    # Every kind is compiled, and none twice.
    blocks = repeated_blocks(work.arguments[0].denoiser)
    assert len(set(compiled)) == len(compiled) >= len({type(block) for block in blocks.values()})
    assert len(compiled) <= len(blocks)
