"""An engine that runs from graphs: which sizes are captured and compiled, when, and that its pictures stay.

In the place of a graph stands the computation that it would have captured; all else is the real thing, on the CPU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.generation_job import Acceleration, FeatureCaching, GuidanceInterval
from kubediffusion.resources.testing import present
from kubediffusion.worker.engine import ImageOutput
from kubediffusion.worker.engine.arrangement import sizes_up_to
from kubediffusion.worker.engine.forward_mode import Features, ForwardMode
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.local_executor import PreparedBatch
from kubediffusion.worker.execution.stepping import CudaGraphManager
from unit.worker.graph_captures import Captures, wait_for
from unit.worker.worker_builders import Recorder, code_of, image_request, levels_apart, settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.usefixtures("without_gradients"),
]


def on_graphs(folder: Path, compiles: Compiler | None) -> ContinuousEngine:
    """An engine that goes the ways of a GPU, as far as the CPU can."""
    loaded = load_engine(settings(folder))
    assert isinstance(loaded, ContinuousEngine)
    sizes = sizes_up_to(4, prepared=True)
    return ContinuousEngine(loaded.pipeline, loaded.info, loaded.family, sizes, compiles, graphs=True)


def test_an_engine_on_graphs_makes_the_same_pictures_plain_and_compiled(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Compiler(None, backend="eager")
    engine = on_graphs(folders("stable_diffusion"), made)
    told: list[tuple[EngineReason, str]] = []
    engine.warm_up(lambda *stage: told.append(stage))
    assert told == [(EngineReason.WARMING_UP, "the weights are on the device; the first image is made")]
    (prepared,) = engine.prepared_batches
    assert list(graphs_of(prepared).captured) == [1]
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


def graphs_of(prepared: PreparedBatch) -> CudaGraphManager:
    """Return what runs a batch's steps from graphs."""
    assert isinstance(prepared.step_runner, CudaGraphManager)
    return prepared.step_runner


def prepared_whole(engine: ContinuousEngine) -> None:
    """Let an engine prepare until it has nothing left to do."""
    woken = threading.Event()
    while True:
        busy = engine.compiler is not None and engine.compiler.busy
        if engine.prepare_while_idle(woken.set):
            continue
        if not busy:
            return
        assert woken.wait(60)
        woken.clear()


def test_an_idle_engine_captures_every_size_and_then_has_each_compiled(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[EngineReason, str]] = []
    made = Compiler(None, backend="eager", on_stage=lambda *stage: told.append(stage))
    engine = on_graphs(folders("stable_diffusion"), made)
    engine.warm_up()
    (prepared,) = engine.prepared_batches
    while not present(engine.preparation).captured:
        assert not told
        assert engine.prepare_while_idle(lambda: None)
    assert graphs_of(prepared).captured == {1: False, 2: False, 4: False}
    prepared_whole(engine)
    assert graphs_of(prepared).captured == {1: True, 2: True, 4: True}
    assert told[0] == (EngineReason.READY, "0 of 3 compiled; the rest follows")
    assert told[-1] == (EngineReason.READY, "all that was prepared is compiled")
    count = captures.count
    seen = Recorder()
    engine.run((image_request(0), image_request(1)), seen)
    assert {load.compiled for load in seen.loads} == {True}
    assert captures.count == count
    assert not engine.prepare_while_idle(lambda: None)


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
    assert not present(engine.preparation).captured
    tasks = [image_request(index, steps=4 + 2 * index) for index in range(4)]
    seen = Recorder()
    engine.run(tuple(tasks), seen)
    assert present(engine.preparation).captured
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
    prepared_whole(engine)
    (prepared,) = engine.prepared_batches
    assert graphs_of(prepared).captured == {1: False, 2: False, 4: False}
    graphs_of(prepared).evict()
    assert graphs_of(prepared).prepare(2)
    assert graphs_of(prepared).captured == {2: False}
    fitting = on_graphs(folders("stable_diffusion"), None)
    fitting.warm_up()
    captures.refusing = torch.OutOfMemoryError("too much")
    prepared_whole(fitting)
    assert present(fitting.preparation).captured
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
    (prepared,) = engine.prepared_batches
    captures.most_rows = 2
    prepared_whole(engine)
    assert graphs_of(prepared).captured == {1: True, 2: True}
    assert captures.refused == 1
    assert prepared.sizes == (1, 2)


def test_what_is_being_prepared_is_not_forgotten_for_jobs_of_other_sizes(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = on_graphs(folders("stable_diffusion"), None)
    engine.warm_up()
    (prepared,) = engine.prepared_batches
    for width in (8, 16, 24, 40, 48):
        engine.run((image_request(0, steps=1, width=width, height=8),), Recorder())
    assert prepared in list(engine.prepared_batches)
    assert len(engine.prepared_batches) == 4


def test_where_memory_runs_out_all_graphs_are_freed(
    folders: Callable[[str], Path], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    engine = on_graphs(folders("stable_diffusion"), None)
    engine.warm_up()
    prepared_whole(engine)
    (prepared,) = engine.prepared_batches
    graphs_of(prepared).evict()
    # All of them: graphs share their memory.
    assert graphs_of(prepared).captured == {}
    captures.refusing = torch.OutOfMemoryError("too much")
    seen = Recorder()
    engine.run((image_request(0), image_request(1)), seen)
    assert [code_of(seen.outcomes[index]) for index in range(2)] == ["OutOfMemory", "OutOfMemory"]
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
    (prepared,) = engine.prepared_batches
    choices = (Features.REFRESH, Features.REUSE)
    parts = {ForwardMode(features, prompt_only) for features in choices for prompt_only in (False, True)}
    assert set(graphs_of(prepared).others) == parts
    # None of the whole, which no call of this image was.
    assert captures.count >= 2 * len(parts)
    assert graphs_of(prepared).captured == {}
    graphs_of(prepared).evict()
    assert all(steps.captured == {} for steps in graphs_of(prepared).others.values())
