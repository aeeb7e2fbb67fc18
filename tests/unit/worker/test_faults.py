"""What is done about memory after a failure."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from kubediffusion.worker.execution.faults import check_device


def failed_step() -> weakref.ref[torch.Tensor]:
    """Fail as a step may whose error is kept by a frame of its own traceback, and return what that frame holds."""
    tensor = torch.zeros(1)
    try:
        raise RuntimeError("broken")  # noqa: TRY301 - this frame is to be in the traceback
    except RuntimeError as error:
        kept = error  # noqa: F841 - the cycle
    return weakref.ref(tensor)


@pytest.mark.parametrize(("error", "freed"), [(torch.OutOfMemoryError("too much"), True), (ValueError("no"), False)])
def test_what_failures_left_in_cycles_is_freed_when_memory_runs_out(error: Exception, freed: bool) -> None:
    gc.disable()
    try:
        left = failed_step()
        assert left() is not None
        check_device(torch.device("cpu"), error)
        assert (left() is None) == freed
    finally:
        gc.enable()
