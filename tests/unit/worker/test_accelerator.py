"""What is for CUDA devices: its counterparts on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from kubediffusion.worker.execution import accelerator
from kubediffusion.worker.execution.accelerator import PrefetchStream, StepPacer
from kubediffusion.worker.execution.slots import first_row

CPU = torch.device("cpu")


def test_on_the_cpu_everything_is_done_when_a_call_returns() -> None:
    accelerator.prepare(SimpleNamespace(device=CPU))
    StepPacer(CPU).step()
    row = first_row(torch.ones(1, 4, 2, 2), {})
    assert PrefetchStream(CPU).run(lambda: row) is row
    assert accelerator.reserved_memory(CPU) is None
    with accelerator.repeatable(CPU):
        assert not torch.backends.cudnn.deterministic
