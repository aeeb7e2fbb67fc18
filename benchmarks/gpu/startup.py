"""Starts as a worker's process does, makes an image, and measures how long after the start of the process it was a PNG.

    python benchmarks/gpu/startup.py BEGAN FOLDER CACHE LIMIT [full]

``BEGAN`` is the time at which the process was started (``date +%s.%N``), ``LIMIT`` the most images in a batch. With
``full`` it goes on until an image ran compiled from its first step to its last pixel; what another worker compiled is
taken from ``CACHE``.
"""

import json
import os
import sys
import time

BEGAN = float(sys.argv[1])
FOUND: dict[str, float] = {}


def note(what: str) -> None:
    """Print and record how many seconds after the start of the process something was ready."""
    FOUND[what] = round(time.time() - BEGAN, 2)
    sys.stdout.write(f"startup {what} {FOUND[what]}\n")
    sys.stdout.flush()


note("interpreter")

from pathlib import Path  # noqa: E402 - timed
from typing import Any  # noqa: E402

import kubediffusion.worker.main  # noqa: E402, F401 - what a worker's process imports first
from kubediffusion.resources.conditions import EngineReason  # noqa: E402
from kubediffusion.resources.runtime import logs  # noqa: E402
from kubediffusion.worker.settings import Settings  # noqa: E402
from kubediffusion.worker.starting import start_engine  # noqa: E402

note("the worker's own modules")

CUDA = Path("/dev/nvidiactl").exists()
"""Whether there is a CUDA device; asked without PyTorch, whose import is part of what is measured."""

BEGINS = {
    EngineReason.FETCHING_MODEL: "libraries",
    EngineReason.LOADING_WEIGHTS: "model",
    EngineReason.WARMING_UP: "weights",
}
"""What is ready when a stage begins."""


_PAUSE = 0.5
"""Seconds between two images: jobs come one at a time."""


def on_progress(stage: EngineReason, _message: str) -> None:
    """Note when a stage is reported for the first time."""
    if (what := BEGINS.get(stage)) is not None and what not in FOUND:
        note(what)


def main() -> None:
    """Start, and write what was found into the cache's folder."""
    folder, cache = Path(sys.argv[2]), Path(sys.argv[3])
    logs.configure_logging("INFO")
    engine = start_engine(
        Settings(
            pod_name="benchmark",
            pod_namespace="benchmark",
            model_name="benchmark",
            bucket="benchmark",
            cache_dir=cache,
            compile_cache_path=cache / "compiled",
            spec={"source": {"path": str(folder)}, "compile": CUDA, "workers": {"maxBatchSize": int(sys.argv[4])}},
        ),
        on_progress,
    )
    note("loaded")

    import models

    from kubediffusion.worker.images import encode

    (task,) = models.tasks(1)

    def png() -> Any:
        watch = models.make(engine, [task], 1)
        encode(watch.outcomes[0], task.prompt, {})
        return watch

    png()
    note("first image")
    if CUDA and "full" in sys.argv[5:]:
        # Until the image ran compiled from its first step to its last pixel; between two images the engine rests.
        serving: Any = engine
        while True:
            models.prepare_while_idle(engine, _PAUSE)
            began = time.perf_counter()
            watch = png()
            decoders = serving.decoder._graphed._graphs.values()
            if all(load.compiled for load in watch.loads) and all(graph.compiled for graph in decoders):
                break
        FOUND["seconds of that image"] = round(time.perf_counter() - began, 3)
        note("first image at full speed")
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "startup.json").write_text(json.dumps(FOUND))
    # What still compiles is not waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
