"""Compiles one batch size, for the engine or for the raw loop, so that PyTorch's cache has it.

    python benchmarks/gpu/precompile.py FOLDER SIZE CACHE engine|raw

Several of these at once take little longer than one.
"""

import sys
import time
from pathlib import Path

import models
import torch
from raw import Raw

from kubediffusion.resources.runtime import logs
from kubediffusion.worker.pipeline.loading import load_engine

CUDA = torch.cuda.is_available()


def main() -> None:
    """Compile."""
    folder, size, cache, kind = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    logs.configure("WARNING")
    began = time.perf_counter()
    compiled = CUDA and kind == "engine"
    engine = load_engine(models.settings(folder, compiled=compiled, limit=16, cache=cache))
    if size > 1:
        # One is enough to compile it.
        engine._decoder._graphed._compiler = None
    settling = models.Settling(engine)
    while not settling.after(models.make(engine, models.tasks(size, (4,)), size), decoding=size == 1):
        time.sleep(0.5)
    if CUDA and kind == "raw":
        with torch.inference_mode():
            Raw(engine._pipeline, size, captured=False)
    sys.stdout.write(f"precompile: {size} of the {kind} after {time.perf_counter() - began:.0f} s\n")


if __name__ == "__main__":
    main()
