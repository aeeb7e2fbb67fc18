"""The same model in one process, and shared by two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kubediffusion.worker.engine import ImageRequest
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.parallel.engine import ParallelEngine
from unit.worker.continuous_engines import load, pictures
from unit.worker.worker_builders import levels_apart, settings

Pair = tuple[ContinuousEngine, ParallelEngine]
"""The engine of one process, and that of two."""


def shared(folder: Path, mode: str) -> ParallelEngine:
    """Load a model that two ranks share; one at a time in a process."""
    made = load_engine(settings(folder, workers={"parallelism": {"mode": mode, "size": 2}}))
    assert isinstance(made, ParallelEngine)
    return made


def paired(folder: Path, mode: str) -> Iterator[Pair]:
    """Load a model alone and shared, and end its ranks after use."""
    together = shared(folder, mode)
    yield load(folder), together
    together.close()


def check_same(pair: Pair, *requests: ImageRequest) -> None:
    """Check that both engines make the same pictures, to one level of 255."""
    alone, together = (pictures(engine, *requests) for engine in pair)
    assert alone.keys() == together.keys()
    for index, picture in alone.items():
        assert levels_apart(picture, together[index]) <= 1
