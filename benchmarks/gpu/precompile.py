"""Compiles one batch size, for the engine or for the raw loop, so that PyTorch's cache has it.

    python benchmarks/gpu/precompile.py FOLDER SIZE CACHE engine|raw

Several of these at once take little longer than one. The engine's size 1 is compiled as a worker does that serves one
image at a time, with the decoder, and kept in ``CACHE`` for the next worker.
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import models
import torch
from raw import Raw

from kubediffusion.resources.runtime import logs
from kubediffusion.worker.pipeline.compiling import Compiler
from kubediffusion.worker.pipeline.loading import load_engine
from kubediffusion.worker.pipeline.variants import WHOLE

CUDA = torch.cuda.is_available()


def main() -> None:
    """Compile."""
    folder, size, cache, kind = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    logs.configure("WARNING")
    began = time.perf_counter()
    lone = kind == "engine" and size == 1
    engine: Any = load_engine(models.settings(folder, compiled=CUDA and lone, limit=size, cache=cache))
    if not CUDA:
        models.make(engine, models.tasks(size, (2,)), size)
    elif lone:
        models.rest(engine)
        # What keeps it waits in the compiler's thread.
        engine._compiler._thread.shutdown(wait=True)
    elif kind == "engine":
        _compile_step(engine, size)
    else:
        with torch.inference_mode():
            Raw(engine._pipeline, size, captured=False)
    sys.stdout.write(f"precompile: {size} of the {kind} after {time.perf_counter() - began:.0f} s\n")


def _compile_step(engine: Any, size: int) -> None:
    """Compile an engine's step as its own compiler does, and nothing else."""
    machine = engine._preparation.machine
    work = machine.batch.work(size, WHOLE)
    compiler, compiled = Compiler(None), threading.Event()
    compiler.begin()
    compiler.ready(machine.batch, size, work.function, work.copies)
    compiler.when_free(compiled.set)
    compiled.wait()
    if compiler.refused(machine.batch, size):
        raise RuntimeError(f"a batch of {size} cannot be compiled; the log says why")


if __name__ == "__main__":
    main()
