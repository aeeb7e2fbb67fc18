"""A worker whose engine waits as long as told and gives a tiny picture that its seed decides.

All else is the worker itself: watch, batches, PNG, upload, reports. It stands on the PATH of worker Pods that a
benchmark's DiffusionModel asks for (``spec.workers.env``), under the worker's name; no installation has it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from kubediffusion.resources import meta
from kubediffusion.resources.conditions import AdapterReason
from kubediffusion.worker.engine import EngineInfo, ImageOutput, ImagePlan, ImageRequest, Monitor
from kubediffusion.worker.engine.adapters import AdapterRefusedError, AdapterWeights
from kubediffusion.worker.main import serve
from kubediffusion.worker.settings import Settings

SIZE = 8
"""Pixels of a side."""

FOLDER = Path(__file__).resolve().parents[3]
"""The folder ``benchmarks``."""


class StandInEngine:
    """Waits for each batch.

    Args:
        seconds: How long a batch takes.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.info = EngineInfo(
            name="stand-in", pipeline="none", device="none", torch_dtype="none", revision="stand-in", versions={}
        )

    def plan(self, request: ImageRequest) -> ImagePlan:
        """Return a plan by which images of one set of sampling parameters run together."""
        return ImagePlan(request.sampling, request.sampling.steps)

    def read_adapter(self, file: Path) -> AdapterWeights:
        """Refuse every adapter."""
        raise AdapterRefusedError(AdapterReason.NOT_SUPPORTED, f"{file.name}: a stand-in takes none")

    def prepare_while_idle(self, _wake: Callable[[], None]) -> bool:
        """Do nothing: there is nothing to prepare."""
        return False

    def run(self, tasks: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        """Wait, then give every image of the batch."""
        time.sleep(self._seconds)
        for task in tasks:
            monitor.stepped(task.id, task.sampling.steps, task.sampling.steps)
            monitor.ended(task.id, ImageOutput(SIZE, SIZE, pixels(task.seed), "none"))


def pixels(seed: int) -> bytes:
    """Return the picture of a seed: ``SIZE * SIZE * 3`` bytes, the same for the same seed."""
    return hashlib.shake_256(str(seed).encode()).digest(SIZE * SIZE * 3)


def model(name: str, *, seconds: float, **workers: Any) -> dict[str, Any]:
    """Return the manifest of a DiffusionModel that the stand-in serves.

    Args:
        name: Its name.
        seconds: How long a batch takes.
        **workers: Fields of ``spec.workers``.
    """
    scripts = Path(sys.executable).parent
    return {
        "apiVersion": meta.API_VERSION,
        "kind": "DiffusionModel",
        "metadata": {"name": name, "annotations": {meta.DEFAULT_MODEL_ANNOTATION: "true"}},
        "spec": {
            "source": {"path": f"stand-in:{seconds}"},
            "workers": {
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                "env": [{"name": "PATH", "value": f"{FOLDER / 'bin'}:{scripts}:/usr/bin:/bin"}],
                **workers,
            },
        },
    }


def main() -> None:
    """Run the worker with the stand-in."""
    from kubediffusion.resources.runtime import logs

    settings = Settings()
    logs.configure_logging(settings.log_level)
    seconds = float((settings.spec.source.path or "").removeprefix("stand-in:"))
    os._exit(uvloop.run(serve(settings, lambda *_: StandInEngine(seconds))))
