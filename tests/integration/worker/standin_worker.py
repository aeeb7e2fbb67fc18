"""A worker whose engine obeys the prompt: the worker's own process around it, without torch.

The prompt ``lose the engine`` ends it as a broken device does, ``kill the worker`` as a fault of memory does;
``raise``, ``nothing`` (no image) and ``too few pixels`` are defects of the engine. Any other waits for
``STEP_SECONDS`` a step, four milliseconds by default.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Callable

from kubediffusion.resources.runtime import logs
from kubediffusion.worker.engine import EngineInfo, EngineLostError, ImageOutput, ImageRequest, Monitor, Plan
from kubediffusion.worker.main import serve
from kubediffusion.worker.settings import Settings

SIDE = 256
KILLED_EXIT_CODE = 86
STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.004"))


class ObedientEngine:
    """Does what prompts say."""

    info = EngineInfo(name="stand-in", pipeline="-", device="-", torch_dtype="-", revision="-", versions={})

    def plan(self, request: ImageRequest) -> Plan:
        return Plan(request.shape, request.shape.steps)

    def rest(self, _wake: Callable[[], None]) -> bool:
        return False

    def run(self, tasks: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        for step in range(tasks[0].shape.steps):
            if not any(monitor.wanted(task.id) for task in tasks):
                return
            time.sleep(STEP_SECONDS)
            for task in tasks:
                monitor.stepped(task.id, step + 1, task.shape.steps)
        for task in tasks:
            if task.prompt == "lose the engine":
                raise EngineLostError("the device is gone")
            if task.prompt == "kill the worker":
                os._exit(KILLED_EXIT_CODE)
            if task.prompt == "raise":
                raise ZeroDivisionError("a defect")
            side = 2 * SIDE if task.prompt == "too few pixels" else SIDE
            if task.prompt != "nothing":
                monitor.ended(task.id, ImageOutput(side, side, self.noise(task.seed), f"batch of {len(tasks)}"))

    def noise(self, seed: int) -> bytes:
        """Pixels that do not compress."""
        return hashlib.shake_128(str(seed).encode()).digest(SIDE * SIDE * 3)


def main() -> None:
    """Run the worker."""
    settings = Settings()
    logs.configure_logging(settings.log_level)
    sys.exit(asyncio.run(serve(settings, lambda *_: ObedientEngine())))


if __name__ == "__main__":
    main()
