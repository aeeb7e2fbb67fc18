"""A process that compiles a function for some shapes, as a worker does on a GPU: see test_compile_cache.py.

    python compiling_process.py PLACE SIZE ...

PLACE is a folder, or s3://bucket/folder. What happened is its last line, as JSON.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from kubediffusion.worker.compiled import Bucket, Folder, Keeper, Place, fetch
from kubediffusion.worker.pipeline.artifacts import Artifacts
from kubediffusion.worker.pipeline.compiling import Compiler
from kubediffusion.worker.starting import beside

NAME = "revision/device_dtype/versions.zip"


class Owner:
    """What functions are compiled for."""


def function(numbers: torch.Tensor) -> torch.Tensor:
    """Compute something."""
    return torch.sin(numbers) * 2 + numbers


def main() -> None:
    """Compile."""
    where, *sizes = sys.argv[1:]
    place = partial[Place](Bucket, where) if where.startswith("s3://") else partial[Place](Folder, Path(where))
    keeper = Keeper(place, NAME)
    kept: list[int] = []

    def keep(data: bytes) -> None:
        kept.append(len(data))
        keeper.keep(data)

    compiler = Compiler(Artifacts(beside(partial(fetch, place, NAME), "fetch"), keep))
    compiler.begin()
    owner, same = Owner(), True
    for size in map(int, sizes):
        numbers = torch.arange(float(size))
        arguments = partial(tuple[torch.Tensor], (numbers,))
        assert compiler.ready(owner, size, function, arguments) is None
        # One thread does one thing after the other: first the compiler's, then what keeps its work.
        for _ in range(2):
            compiler._thread.submit(int).result()
        compiled = compiler.ready(owner, size, function, arguments)
        assert compiled is not None
        with torch.inference_mode():
            same &= torch.allclose(compiled(numbers), function(numbers))
    settled = keeper.settled(30)
    found = {"same": same, "kept": len(kept), "settled": settled}
    found |= {"hits": counters["inductor"]["fxgraph_cache_hit"], "misses": counters["inductor"]["fxgraph_cache_miss"]}
    found["aot"] = dict(counters["aot_autograd"])
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
