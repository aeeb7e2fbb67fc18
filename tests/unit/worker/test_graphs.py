"""What runs from CUDA graphs, with the capture itself left out: which graph serves, what is compiled, and when.

In the place of a graph stands the computation that it would have captured; all else is the real thing, on the CPU.
"""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.worker.execution import attention
from kubediffusion.worker.execution.attention import FusedAttention
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.graphs import GraphedFunction
from kubediffusion.worker.families.clip import TextEncoding
from unit.worker.graph_captures import Captures, wait_for
from unit.worker.worker_builders import settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.usefixtures("without_gradients"),
]


GPU = torch.device("cuda")


def compiler() -> Compiler:
    """A compiler that traces as on a GPU, and generates no code."""
    made = Compiler(None, backend="eager")
    made.begin()
    return made


def doubled(factor: float, given: torch.Tensor) -> torch.Tensor:
    return given * factor


def untraceable(factor: float, given: torch.Tensor) -> torch.Tensor:
    torch._dynamo.graph_break()  # noqa: SLF001 - has no public name
    return given * factor


def test_a_function_runs_from_its_graph_then_from_the_compiled_one(captures: Captures) -> None:
    made = compiler()
    function = GraphedFunction(doubled, 2.0, compiler=made)
    assert function(torch.ones(3)).tolist() == [2, 2, 2]
    wait_for(lambda: not made.busy)
    assert function(torch.full((3,), 4.0)).tolist() == [8, 8, 8]
    assert list(function.captured.values()) == [True]
    assert captures.count == 2
    function(torch.ones(3))
    assert captures.count == 2


def test_nothing_is_captured_while_something_is_compiled(captures: Captures) -> None:
    made, going_on = compiler(), threading.Event()
    function = GraphedFunction(doubled, 2.0, compiler=made)

    def slow() -> tuple[float, torch.Tensor]:
        going_on.wait(60)
        return 2.0, torch.ones(1)

    assert made.ready(function, "another", doubled, slow) is None
    assert made.busy
    assert function(torch.ones(2)).tolist() == [2, 2]
    assert captures.count == 0
    going_on.set()
    wait_for(lambda: not made.busy)
    assert function(torch.ones(2)).tolist() == [2, 2]
    assert captures.count == 1


def test_nothing_is_compiled_before_the_compiler_is_told_to_begin(captures: Captures) -> None:
    made = Compiler(None, backend="eager")
    function = GraphedFunction(doubled, 2.0, compiler=made)
    function(torch.ones(2))
    assert not made.busy
    made.begin()
    function(torch.ones(2))
    wait_for(lambda: made.ready(function, (2,), doubled, lambda: (2.0, torch.ones(2))) is not None)


def test_the_graphs_of_the_latest_shapes_are_kept(captures: Captures) -> None:
    function = GraphedFunction(doubled, 2.0, kept=2)
    for size in (1, 2, 1, 3):
        function(torch.ones(size))
    assert list(function.captured) == [(1,), (3,)]
    assert function.evict()
    assert not function.evict()


def test_what_cannot_be_captured_or_compiled_runs_as_it_is_written(captures: Captures) -> None:
    made = compiler()
    function = GraphedFunction(untraceable, 2.0, compiler=made)
    for _ in range(2):
        assert function(torch.ones(1)).tolist() == [2]
        wait_for(lambda: not made.busy)
    assert captures.count == 1
    captures.refusing = RuntimeError("operation not permitted when stream is capturing")
    refused = GraphedFunction(doubled, 2.0, compiler=made)
    assert [refused(torch.ones(1)).tolist() for _ in range(2)] == [[2], [2]]
    captures.refusing = torch.OutOfMemoryError("too much")
    with pytest.raises(torch.OutOfMemoryError):
        GraphedFunction(doubled, 2.0)(torch.ones(1))


def test_what_cannot_be_compiled_is_captured_anew_once_its_graph_is_gone(captures: Captures) -> None:
    made = compiler()
    function = GraphedFunction(untraceable, 2.0, compiler=made, kept=1)

    def use(size: int) -> None:
        for _ in range(2):
            assert function(torch.ones(size)).tolist() == [2] * size
            wait_for(lambda: not made.busy)

    use(1)
    assert captures.count == 1
    assert function.evict()
    use(1)
    assert captures.count == 2
    use(2)
    assert captures.count == 3
    use(1)
    assert captures.count == 4


def test_a_compiler_tells_how_much_of_what_was_prepared_is_compiled(captures: Captures) -> None:
    told: list[tuple[EngineReason, str]] = []
    made = Compiler(None, backend="eager", on_stage=lambda *stage: told.append(stage))
    functions = [GraphedFunction(doubled, factor, compiler=made) for factor in (2.0, 3.0)]
    for function in functions:
        function(torch.ones(2))
    assert told == []
    made.begin()
    for function in functions:
        function(torch.ones(2))
        wait_for(lambda: told[-1][0] is EngineReason.READY)
    # What is compiled for later jobs is none of the start's business.
    functions[0](torch.ones(7))
    wait_for(lambda: not made.busy)
    assert told == [
        (EngineReason.READY, "0 of 2 compiled; the rest follows"),
        (EngineReason.COMPILING, "0 of 2 compiled; the rest runs uncompiled so far"),
        (EngineReason.READY, "1 of 2 compiled; the rest follows"),
        (EngineReason.COMPILING, "1 of 2 compiled; the rest runs uncompiled so far"),
        (EngineReason.READY, "all that was prepared is compiled"),
    ]


def test_a_compiler_keeps_nobody_alive_and_lets_other_threads_run() -> None:
    made, seen = compiler(), []

    def arguments() -> tuple[float, torch.Tensor]:
        seen.append(sys.getswitchinterval())
        return 2.0, torch.ones(2)

    def used() -> weakref.ref[GraphedFunction]:
        owner = GraphedFunction(doubled, 2.0)
        wait_for(lambda: made.ready(owner, "a", doubled, arguments) is not None)
        return weakref.ref(owner)

    owner = used()
    gc.collect()
    assert owner() is None
    assert seen[0] < 0.005 == sys.getswitchinterval()


def test_texts_are_encoded_as_the_pipeline_encodes_them(folders: Callable[[str], Path]) -> None:
    engine = load_engine(settings(folders("stable_diffusion")))
    assert isinstance(engine, ContinuousEngine)
    pipeline = engine.pipeline
    encoding = TextEncoding(pipeline)
    encoding.use_graphs(GraphedFunction)
    with torch.inference_mode():
        for text in ("a cat", "", "a prompt that is longer than this tokenizer takes"):
            (expected, empty) = pipeline.encode_prompt([text], torch.device("cpu"), 1, True)
            assert torch.equal(encoding.of(text), expected)
            assert torch.equal(encoding.of(""), empty)
            assert encoding.of(text) is encoding.of(text)
            assert torch.equal(encoding.of(text, plain=True), expected)
        pipeline.text_encoder.config.use_attention_mask = True
        masked = pipeline.encode_prompt(["a dog"], torch.device("cpu"), 1, False)[0]
        assert torch.equal(encoding.of("a dog"), masked)


def small_unet() -> Any:
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel
    return unet(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=32,
    ).eval()


def test_the_large_batchs_attention_computes_what_diffusers_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = small_unet()
    given = (torch.randn(2, 4, 8, 8), torch.ones(2), torch.randn(2, 7, 32))
    calls = []

    def cudnn(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        calls.append(query.shape)
        nothing = torch.zeros(1)
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return attended, nothing, nothing, nothing, 1, 1, nothing, nothing, nothing

    def compute(unet: Any, latents: torch.Tensor, timestep: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        return unet(latents, timestep, told, return_dict=False)[0]

    with torch.inference_mode(), torch.library._scoped_library("aten", "IMPL") as library:  # noqa: SLF001
        library.impl("_scaled_dot_product_cudnn_attention", cudnn, "CPU")
        expected = compute(unet, *given)
        unet.fuse_qkv_projections()
        unet.set_attn_processor(FusedAttention(cudnn=True))
        assert torch.allclose(compute(unet, *given), expected, atol=1e-5)
        assert not calls
        monkeypatch.setattr(attention, "takes_cudnn", lambda *_: True)
        assert torch.allclose(compute(unet, *given), expected, atol=1e-5)
        assert calls
        compiled = torch.compile(compute, fullgraph=True, dynamic=False, backend="eager")
        assert torch.allclose(compiled(unet, *given), expected, atol=1e-5)


@dataclass
class StatesOnCuda:
    """What is asked of the hidden states of a CUDA device, of which this machine has none."""

    rows: int
    dtype: torch.dtype
    is_cuda = True

    def __len__(self) -> int:
        return self.rows

    def dim(self) -> int:
        return 3


def test_only_plain_layers_of_large_batches_in_half_precision_go_to_cudnn() -> None:
    layer = small_unet().mid_block.attentions[0].transformer_blocks[0].attn1

    def takes(rows: int = attention.CUDNN_FROM, dtype: torch.dtype = torch.float16, mask: Any = None) -> bool:
        states: Any = StatesOnCuda(rows, dtype)
        return attention.takes_cudnn(layer, states, mask)

    layer.inner_dim = 64 * layer.heads
    assert takes()
    assert not takes(rows=attention.CUDNN_FROM - 1)
    assert not takes(dtype=torch.float32)
    assert not takes(mask=torch.ones(1))
    layer.inner_dim = 160 * layer.heads
    assert not takes()
    layer.inner_dim, layer.norm_cross = 64 * layer.heads, True
    assert not takes()
