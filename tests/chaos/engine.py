"""A worker whose engine waits at every step and draws what the recipe says, with the rounding of its own process.

All else is the worker itself.
"""

from __future__ import annotations

import os
import threading
import time

import uvloop

from chaos.load import NEVER, SCHEME
from chaos.picture import POISON, POISONED_EXIT_CODE, SIDE, pixels, rounded
from kubediffusion.benchmarks.standin import StandInEngine
from kubediffusion.resources.runtime import logs
from kubediffusion.worker.engine import ImageOutput, ImageRequest, Monitor
from kubediffusion.worker.main import serve
from kubediffusion.worker.settings import Settings


class DrawingEngine(StandInEngine):
    """Waits for each step of a batch; gives up when nobody wants any of its images.

    Args:
        seconds: How long a step takes.
        process: Decides the rounding.
    """

    def __init__(self, seconds: float, process: str) -> None:
        super().__init__(seconds)
        self._step = seconds
        self._process = process

    def run(self, tasks: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        """Draw a batch."""
        for step in range(tasks[0].sampling.steps):
            if not any(monitor.wanted(task.id) for task in tasks):
                return
            time.sleep(self._step)
            for task in tasks:
                monitor.stepped(task.id, step + 1, task.sampling.steps)
                if task.prompt.endswith(POISON) and 4 * (step + 1) >= 3 * task.sampling.steps:
                    os._exit(POISONED_EXIT_CODE)
        for task in tasks:
            monitor.ended(task.id, self._draw(task))

    def _draw(self, task: ImageRequest) -> ImageOutput:
        sampling = task.sampling
        width, height = sampling.width or SIDE, sampling.height or SIDE
        rgb = pixels(task.prompt, task.negative_prompt, task.seed, sampling.steps, sampling.guidance, width, height)
        return ImageOutput(width, height, rgb if sampling.deterministic else rounded(rgb, self._process), "none")


def main() -> None:
    """Run the worker."""
    settings = Settings()
    logs.configure_logging(settings.log_level)
    step = (settings.spec.source.path or "").removeprefix(SCHEME)

    def load(*_: object) -> DrawingEngine:
        if step == NEVER:
            threading.Event().wait()
        return DrawingEngine(float(step), settings.pod_name)

    os._exit(uvloop.run(serve(settings, load)))
