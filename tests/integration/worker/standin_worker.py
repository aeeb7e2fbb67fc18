"""A worker whose engine obeys the prompt: the worker's own process around it, without torch.

The prompt ``lose the engine`` ends it as a broken device does, ``kill the worker`` as a fault of memory does;
``quote the secrets`` and ``lose the secrets`` write its credentials into an error. ``raise``, ``nothing`` (no image)
and ``too few pixels`` are defects of the engine. Any other waits for ``STEP_SECONDS`` a step, four milliseconds by
default.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from kubediffusion.resources.conditions import AdapterReason
from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.runtime import logs
from kubediffusion.worker.engine import (
    EngineInfo,
    EngineLostError,
    ImageOutput,
    ImagePlan,
    ImageRequest,
    Monitor,
    Outcome,
)
from kubediffusion.worker.engine.adapters import AdapterRefusedError, AdapterWeights
from kubediffusion.worker.main import serve
from kubediffusion.worker.settings import Settings

SIDE = 256
KILLED_EXIT_CODE = 86
PLANTED = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Credentials of a worker."""
STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.004"))


class ObedientEngine:
    """Does what prompts say."""

    info = EngineInfo(name="stand-in", pipeline="-", device="-", torch_dtype="-", revision="-", versions={})

    def plan(self, request: ImageRequest) -> ImagePlan:
        return ImagePlan(request.sampling, request.sampling.steps)

    def read_adapter(self, file: Path) -> AdapterWeights:
        raise AdapterRefusedError(AdapterReason.NOT_SUPPORTED, f"{file.name}: a stand-in takes none")

    def prepare_while_idle(self, _wake: Callable[[], None]) -> bool:
        return False

    def run(self, tasks: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        for step in range(tasks[0].sampling.steps):
            if not any(monitor.wanted(task.id) for task in tasks):
                return
            time.sleep(STEP_SECONDS)
            for task in tasks:
                monitor.stepped(task.id, step + 1, task.sampling.steps)
        for task in tasks:
            if (outcome := self.outcome(task, len(tasks))) is not None:
                monitor.ended(task.id, outcome)

    def outcome(self, task: ImageRequest, images: int) -> Outcome | None:
        """Obey the prompt."""
        match task.prompt:
            case "lose the engine":
                raise EngineLostError("the device is gone")
            case "lose the secrets":
                raise EngineLostError(quoted())
            case "kill the worker":
                os._exit(KILLED_EXIT_CODE)
            case "raise":
                raise ZeroDivisionError("a defect")
            case "nothing":
                return None
            case "quote the secrets":
                logging.getLogger("a.library").warning("as libraries do: %s", quoted())
                return JobFailure(ErrorCode.PIPELINE_FAILED, quoted())
        side = 2 * SIDE if task.prompt == "too few pixels" else SIDE
        return ImageOutput(side, side, self.noise(task.seed), f"batch of {images}")

    def noise(self, seed: int) -> bytes:
        """Pixels that do not compress."""
        return hashlib.shake_128(str(seed).encode()).digest(SIDE * SIDE * 3)


def quoted() -> str:
    """The process's credentials as libraries quote them: plain, of Python, in a URL, in bytes' digits, in a header."""
    values = [os.environ[name] for name in PLANTED]
    forms = [
        form
        for value in values
        for form in (
            value,
            repr(value),
            repr(value.encode()),
            quote(value, safe=""),
            quote(quote(value, safe="")),
            value.encode().hex(),
        )
    ]
    return " ".join([*forms, *(b64encode(f"user:{value}".encode()).decode() for value in values)])


def main() -> None:
    """Run the worker."""
    settings = Settings()
    logs.configure_logging(settings.log_level, settings.secrets)
    sys.exit(asyncio.run(serve(settings, lambda *_: ObedientEngine())))


if __name__ == "__main__":
    main()
