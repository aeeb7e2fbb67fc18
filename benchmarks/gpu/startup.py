"""Starts as a worker's process does, makes an image, and tells how long after the process began it was a PNG.

    python benchmarks/gpu/startup.py BEGAN FOLDER CACHE [full]

``BEGAN`` is the time at which the process was started (``date +%s.%N``). With ``full`` it goes on until an image ran
compiled from its first step to its last pixel; what another worker compiled is taken from ``CACHE``.
"""

import json
import os
import sys
import time

BEGAN = float(sys.argv[1])
FOUND: dict[str, float] = {}


def note(what: str) -> None:
    """Tell how many seconds after the process was started something was there."""
    FOUND[what] = round(time.time() - BEGAN, 2)
    sys.stdout.write(f"startup {what} {FOUND[what]}\n")
    sys.stdout.flush()


note("interpreter")

import torch  # noqa: E402 - timed

note("torch")

from pathlib import Path  # noqa: E402

from kubediffusion.worker.images import encode  # noqa: E402
from kubediffusion.worker.pipeline.loading import load_engine  # noqa: E402

note("libraries")

import models  # noqa: E402


def main() -> None:
    """Start, and write what was found into the cache's folder."""
    folder, cache = Path(sys.argv[2]), Path(sys.argv[3])
    compiled = torch.cuda.is_available()
    engine = load_engine(models.settings(folder, compiled=compiled, limit=16, cache=cache))
    note("loaded")
    (task,) = models.tasks(1)

    def png() -> models.Watch:
        watch = models.make(engine, [task], 1)
        encode(watch.outcomes[0], task.prompt, {})
        return watch

    png()
    note("first image")
    if compiled and "full" in sys.argv[4:]:
        settling, began = models.Settling(engine), time.perf_counter()
        while not settling.after(png()):
            began = time.perf_counter()
        FOUND["seconds of that image"] = round(time.perf_counter() - began, 3)
        note("first image at full speed")
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "startup.json").write_text(json.dumps(FOUND))
    # What still compiles is not waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
