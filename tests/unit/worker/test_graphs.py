"""What runs from CUDA graphs, with the capture itself left out: which graph serves, what is compiled, and when.

In the place of a graph stands the computation that it would have captured; all else is the real thing, on the CPU.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.generation_job import Acceleration, FeatureCaching, GuidanceInterval
from kubediffusion.worker.engine import ImageOutput
from kubediffusion.worker.engine.forward_mode import Features, ForwardMode
from kubediffusion.worker.execution import attention, graphs, stepping
from kubediffusion.worker.execution.attention import FusedAttention
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.graphs import GraphedFunction
from kubediffusion.worker.families.clip import TextEncoding
from unit.worker.worker_builders import Recorder, image_request, levels_apart, settings

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

GPU = torch.device("cuda")


class Captures:
    """Captures nothing, and remembers for what it was asked.

    Attributes:
        refusing: Raised by the next captures.
    """

    def __init__(self) -> None:
        self.count = 0
        self.refusing: Exception | None = None

    def __call__(self, compute: Callable[[], Any], store: Callable[[Any], object], *_: Any, **__: Any) -> Any:
        if self.refusing is not None:
            raise self.refusing
        self.count += 1
        return SimpleNamespace(replay=lambda: store(compute()))


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As the engine computes: code is compiled for tensors that know of none."""
    with torch.inference_mode():
        yield


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    """In the place of CUDA graphs."""
    made = Captures()
    monkeypatch.setattr(graphs, "capture", made)
    monkeypatch.setattr(stepping, "capture", made)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return made


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


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    made = Compiler(None, backend="eager", progress=lambda *stage: told.append(stage))
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


def on_graphs(folder: Path, compiles: Compiler | None) -> ContinuousEngine:
    """An engine that goes the ways of a GPU, as far as the CPU can."""
    loaded = load_engine(settings(folder))
    assert isinstance(loaded, ContinuousEngine)
    return ContinuousEngine(loaded.pipeline, loaded.info, loaded.family, 4, compiles, graphs=True)


def test_an_engine_on_graphs_makes_the_same_pictures_plain_and_compiled(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Compiler(None, backend="eager")
    engine = on_graphs(folders("stable_diffusion"), made)
    told: list[tuple[EngineReason, str]] = []
    engine.warm_up(lambda *stage: told.append(stage))
    assert told == [(EngineReason.WARMING_UP, "the weights are on the device; the first image is made")]
    (machine,) = engine.machines
    assert list(machine.steps.captured) == [1]
    tasks = [image_request(index, "a cat", steps=4 + index, scheduler="EulerDiscreteScheduler") for index in range(3)]
    expected = Recorder()
    for task in tasks:
        engine.whole_calls.run((task,), expected)
    seen = Recorder()
    deadline = time.monotonic() + 60
    while not (seen.loads and all(load.compiled for load in seen.loads)):
        assert time.monotonic() < deadline
        seen = Recorder()
        engine.run(tuple(tasks), seen)
        for task in tasks:
            picture = seen.outcomes[task.id.index]
            assert isinstance(picture, ImageOutput)
            assert levels_apart(picture, expected.outcomes[task.id.index]) <= 1
        wait_for(lambda: not made.busy)


def rested(engine: ContinuousEngine) -> None:
    """Let an engine rest until it has nothing left to do."""
    woken = threading.Event()
    while True:
        busy = engine.compiler is not None and engine.compiler.busy
        if engine.rest(woken.set):
            continue
        if not busy:
            return
        assert woken.wait(60)
        woken.clear()


def test_an_idle_engine_captures_every_size_and_then_has_each_compiled(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[EngineReason, str]] = []
    made = Compiler(None, backend="eager", progress=lambda *stage: told.append(stage))
    engine = on_graphs(folders("stable_diffusion"), made)
    engine.warm_up()
    (machine,) = engine.machines
    while not engine.preparation.captured:
        assert not told
        assert engine.rest(lambda: None)
    assert machine.steps.captured == {1: False, 2: False, 4: False}
    rested(engine)
    assert machine.steps.captured == {1: True, 2: True, 4: True}
    assert told[0] == (EngineReason.READY, "0 of 3 compiled; the rest follows")
    assert told[-1] == (EngineReason.READY, "all that was prepared is compiled")
    count = captures.count
    seen = Recorder()
    engine.run((image_request(0), image_request(1)), seen)
    assert {load.compiled for load in seen.loads} == {True}
    assert captures.count == count
    assert not engine.rest(lambda: None)


def test_an_engine_that_never_rests_prepares_between_the_steps_of_its_batch(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Compiler(None, backend="eager")
    engine = on_graphs(folders("stable_diffusion"), made)
    engine.warm_up()
    task = image_request(0, steps=4)
    expected, seen = Recorder(), Recorder()
    engine.whole_calls.run((task,), expected)
    engine.run((task,), seen)
    # Nobody waits for a size that the first image does not need.
    assert not engine.preparation.captured
    tasks = [image_request(index, steps=4 + 2 * index) for index in range(4)]
    seen = Recorder()
    engine.run(tuple(tasks), seen)
    assert engine.preparation.captured
    assert isinstance(seen.outcomes[0], ImageOutput)
    assert levels_apart(seen.outcomes[0], expected.outcomes[0]) <= 1
    wait_for(lambda: not made.busy)


def test_what_cannot_be_compiled_or_does_not_fit_ends_the_preparation(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def refuse(*_: Any) -> Any:
        raise RuntimeError("no code for this")

    refusing: Any = refuse
    made = Compiler(None, backend=refusing)
    engine = on_graphs(folders("stable_diffusion"), made)
    engine.warm_up()
    rested(engine)
    (machine,) = engine.machines
    assert machine.steps.captured == {1: False, 2: False, 4: False}
    machine.steps.evict()
    assert machine.steps.prepare(2)
    assert machine.steps.captured == {2: False}
    fitting = on_graphs(folders("stable_diffusion"), None)
    fitting.warm_up()
    captures.refusing = torch.OutOfMemoryError("too much")
    rested(fitting)
    assert fitting.preparation.captured
    captures.refusing = None
    seen = Recorder()
    fitting.run((image_request(0), image_request(1)), seen)
    assert [type(seen.outcomes[index]) for index in range(2)] == [ImageOutput, ImageOutput]


def test_sizes_that_fit_are_compiled_though_larger_ones_do_not(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    engine = on_graphs(folders("stable_diffusion"), Compiler(None, backend="eager"))
    engine.warm_up()
    (machine,) = engine.machines
    prepare, attempts = machine.steps.prepare, []

    def short_of_memory(size: int) -> bool:
        attempts.append(size)
        if size >= 4:
            raise torch.OutOfMemoryError("too much")
        return prepare(size)

    monkeypatch.setattr(machine.steps, "prepare", short_of_memory)
    rested(engine)
    assert machine.steps.captured == {1: True, 2: True}
    assert attempts.count(4) == 1
    assert machine.sizes == (1, 2)


def test_what_is_being_prepared_is_not_forgotten_for_jobs_of_other_sizes(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = on_graphs(folders("stable_diffusion"), None)
    engine.warm_up()
    (machine,) = engine.machines
    for width in (8, 16, 24, 40, 48):
        engine.run((image_request(0, steps=1, width=width, height=8),), Recorder())
    assert machine in list(engine.machines)
    assert len(engine.machines) <= 4


def test_where_memory_runs_out_all_graphs_are_freed(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    engine = on_graphs(folders("stable_diffusion"), None)
    engine.warm_up()
    rested(engine)
    (machine,) = engine.machines
    machine.steps.evict()
    # All of them: graphs share their memory.
    assert machine.steps.captured == {}
    captures.refusing = torch.OutOfMemoryError("too much")
    seen = Recorder()
    engine.run((image_request(0), image_request(1)), seen)
    assert [seen.outcomes[index].code for index in range(2)] == ["OutOfMemory", "OutOfMemory"]
    captures.refusing = RuntimeError("no graph today")
    seen = Recorder()
    engine.run((image_request(0), image_request(1)), seen)
    assert [type(seen.outcomes[index]) for index in range(2)] == [ImageOutput, ImageOutput]


def test_each_variant_of_a_step_has_a_graph_of_its_own_and_all_are_captured_before_one_is_compiled(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    made = Compiler(None, backend="eager")
    engine = on_graphs(folders("stable_diffusion"), made)
    made.begin()
    wish = Acceleration(guidance_interval=GuidanceInterval(stop=0.5), feature_caching=FeatureCaching(interval=2))
    task = image_request(0, steps=8, scheduler="EulerDiscreteScheduler", acceleration=wish)
    expected = Recorder()
    ordinary = load_engine(settings(folders("stable_diffusion")))
    ordinary.run((task,), expected)
    compiled: list[bool] = []
    while not all(compiled) or not compiled:
        seen = Recorder()
        engine.run((task,), seen)
        assert isinstance(seen.outcomes[0], ImageOutput)
        assert levels_apart(seen.outcomes[0], expected.outcomes[0]) <= 1
        compiled = [load.compiled for load in seen.loads]
        wait_for(lambda: not made.busy)
    (machine,) = engine.machines
    choices = (Features.REFRESH, Features.REUSE)
    parts = {ForwardMode(features, prompt_only) for features in choices for prompt_only in (False, True)}
    assert set(machine.steps.others) == parts
    # None of the whole, which no call of this image was.
    assert captures.count >= 2 * len(parts)
    assert machine.steps.captured == {}
    machine.steps.evict()
    assert all(steps.captured == {} for steps in machine.steps.others.values())


def test_texts_are_encoded_as_the_pipeline_encodes_them(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
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
        monkeypatch.setattr(pipeline.text_encoder.config, "use_attention_mask", True, raising=False)
        masked = pipeline.encode_prompt(["a dog"], torch.device("cpu"), 1, False)[0]
        assert torch.equal(encoding.of("a dog"), masked)


def small_unet() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
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


def test_only_plain_layers_of_large_batches_in_half_precision_go_to_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = small_unet().mid_block.attentions[0].transformer_blocks[0].attn1

    def takes(rows: int = attention.CUDNN_FROM, dtype: torch.dtype = torch.float16, mask: Any = None) -> bool:
        states = SimpleNamespace(is_cuda=True, dtype=dtype, dim=lambda: 3, __len__=None)
        monkeypatch.setattr(attention, "len", lambda _: rows, raising=False)
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
