"""Loads engines with slots, and runs requests through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kubediffusion.worker.engine import ImageOutput, ImageRequest
from kubediffusion.worker.engine.key import BatchKey
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.continuous import ContinuousEngine
from unit.worker.worker_builders import Recorder, settings


def load(folder: Path, images: int = 4, **spec: Any) -> ContinuousEngine:
    """Load a folder for batches of some images."""
    made = load_engine(settings(folder, workers={"maxBatchSize": images}, **spec))
    assert isinstance(made, ContinuousEngine)
    return made


def batch_key(engine: ContinuousEngine, request: ImageRequest) -> BatchKey:
    """Return what an image must share with those that are computed with it."""
    key = engine.plan(request).key
    assert isinstance(key, BatchKey)
    return key


def run(engine: Any, *requests: ImageRequest, **recorder: Any) -> Recorder:
    """Run requests to their ends, and return what was told of them."""
    seen = Recorder(**recorder)
    engine.run(requests, seen)
    return seen


def pictures(engine: Any, *requests: ImageRequest, **recorder: Any) -> dict[int, ImageOutput]:
    """Run requests that all succeed, and return their images by index."""
    images: dict[int, ImageOutput] = {}
    for index, outcome in run(engine, *requests, **recorder).outcomes.items():
        assert isinstance(outcome, ImageOutput), outcome
        images[index] = outcome
    return images
