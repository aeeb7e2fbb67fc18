"""Compiles one batch size, for the engine or for the raw loop, so that whoever measures need not.

    python benchmarks/gpu/precompile.py FOLDER SIZE CACHE engine|raw

Several of these at once take little longer than one. What is the engine's is kept in ``CACHE`` as a worker keeps it,
with size 1 the decoder too; what is the loop's, in PyTorch's own cache.
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
from kubediffusion.worker.engine.forward_mode import FULL
from kubediffusion.worker.execution.build import load_engine

CUDA = torch.cuda.is_available()


def main() -> None:
    """Compile."""
    folder, size, cache, kind = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    logs.configure_logging("WARNING")
    began = time.perf_counter()
    engine: Any = load_engine(models.settings(folder, compiled=CUDA and kind == "engine", limit=size, cache=cache))
    if not CUDA:
        models.make(engine, models.tasks(size, (2,)), size)
    elif kind == "engine":
        _compile(engine, size)
    else:
        with torch.inference_mode():
            Raw(engine.pipeline, size, captured=False)
    sys.stdout.write(f"precompile: {size} of the {kind} after {time.perf_counter() - began:.0f} s\n")


def _compile(engine: Any, size: int) -> None:
    """Have an engine's compiler compile a step of that size, with the smallest the decoder, and nothing else."""
    prepared, compiler = engine.preparation.prepared, engine.compiler
    work = prepared.batch.input_batch(size, FULL)
    compiler.begin()
    compiler.ready(prepared.batch, size, work.function, work.copies)
    _wait(compiler)
    if compiler.refused(prepared.batch, size):
        raise RuntimeError(f"a batch of {size} cannot be compiled; the log says why")
    if size == 1:
        with torch.inference_mode():
            engine.decoder.prepare()
        _wait(compiler)
    # What keeps it waits in the compiler's thread.
    compiler._thread.shutdown(wait=True)


def _wait(compiler: Any) -> None:
    free = threading.Event()
    compiler.when_free(free.set)
    free.wait()


if __name__ == "__main__":
    main()
