"""A process that compiles a function for some shapes, as a worker does on a GPU: see test_compile_cache.py.

    python compiling_process.py PLACE SIZE ... [--artifacts]

PLACE is a folder, or s3://bucket/folder. With ``--artifacts`` it compiles as a pipeline's own call does. What happened
is its last line, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from kubediffusion.worker.compile_cache import CacheStore, CompiledCodeCache, FolderStore, S3Store
from kubediffusion.worker.execution.compile.artifacts import Artifacts
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.compile.functions import Function

FOLDER = "revision/device_dtype/versions"


class Owner:
    """What functions are compiled for."""


class Counted(CompiledCodeCache):
    """Counts what is kept."""

    kept = 0

    def put(self, name: str, parts: list[bytes]) -> None:
        """Keep it."""
        self.kept += 1
        super().put(name, parts)


def function(numbers: torch.Tensor) -> torch.Tensor:
    """Compute something."""
    return torch.sin(numbers) * 2 + numbers


def main() -> None:
    """Compile."""
    where, *sizes = (argument for argument in sys.argv[1:] if argument != "--artifacts")
    make_store: Callable[[], CacheStore] = partial(FolderStore, Path(where))
    if where.startswith("s3://"):
        make_store = partial(S3Store, where)
    cache = Counted(make_store, FOLDER)
    compile_one = from_artifacts(cache) if "--artifacts" in sys.argv else from_functions(cache)
    same = True
    with torch.inference_mode():
        for size in map(int, sizes):
            numbers = torch.arange(float(size))
            same &= torch.allclose(compile_one(numbers)(numbers), function(numbers))
    found = {"same": same, "kept": cache.kept, "settled": cache.flush(30)}
    found |= {"hits": counters["inductor"]["fxgraph_cache_hit"], "misses": counters["inductor"]["fxgraph_cache_miss"]}
    found["traced"] = counters["stats"]["unique_graphs"]
    sys.stdout.write(f"{json.dumps(found)}\n")


def from_functions(cache: CompiledCodeCache) -> Callable[[torch.Tensor], Function]:
    """Compile as the engine does that knows the pipeline."""
    compiler, owner = Compiler(cache), Owner()
    compiler.begin()

    def compile_one(numbers: torch.Tensor) -> Function:
        arguments = partial(tuple[torch.Tensor], (numbers,))
        assert compiler.ready(owner, len(numbers), function, arguments) is None
        compiler.wait()
        compiled = compiler.ready(owner, len(numbers), function, arguments)
        assert compiled is not None
        return compiled

    return compile_one


def from_artifacts(cache: CompiledCodeCache) -> Callable[[torch.Tensor], Function]:
    """Compile as the engine does that runs a pipeline's own call."""
    artifacts = Artifacts(cache)
    artifacts.load()
    compiled = torch.compile(function, fullgraph=True, dynamic=False)

    def compile_one(numbers: torch.Tensor) -> Function:
        compiled(numbers)
        artifacts.save()
        return compiled

    return compile_one


if __name__ == "__main__":
    main()
