"""What is done differently on a CUDA device: layouts, kernels, streams. On the CPU each has a plain counterpart.

Nothing here waits for the device, except :class:`StepPacer`, which keeps the host one step ahead of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from kubediffusion.worker.execution.attention import FusedAttention
from kubediffusion.worker.execution.graphs import URGENT
from kubediffusion.worker.execution.slots import SlotState
from kubediffusion.worker.execution.transformer_attention import use_cudnn
from kubediffusion.worker.loading.device import is_hopper


def prepare(pipeline: Any) -> None:
    """Bring a pipeline's modules into the form in which a CUDA device is fastest; on the CPU leave them."""
    if pipeline.device.type != "cuda":
        return
    if getattr(pipeline, "unet", None) is None:
        if is_hopper(pipeline.device):
            use_cudnn(getattr(pipeline, "transformer", None))
        return
    for module in (pipeline.unet, pipeline.vae):
        module.to(memory_format=torch.channels_last)
        module.fuse_qkv_projections()
    pipeline.unet.set_attn_processor(FusedAttention(cudnn=is_hopper(pipeline.device)))


def reserved_memory(device: torch.device) -> int | None:
    """Return how many bytes of the device's memory this process holds; None on the CPU."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else None


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Have every call choose the same kernels: no benchmark, and only those that give the same bits each time."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


class PrefetchStream:
    """Runs what feeds a batch in a stream of its own: its copies from the host then wait for no step.

    Args:
        device: What computes.
    """

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(priority=URGENT) if cuda else None  # type: ignore[no-untyped-call]

    def run(self, make: Callable[[], SlotState]) -> SlotState:
        """Make a row; what is launched after this on the current stream finds it made."""
        if self._stream is None:
            return make()
        with torch.cuda.stream(self._stream):
            row = make()
        main = torch.cuda.current_stream()
        main.wait_stream(self._stream)
        factors = (factor for added in row.added.values() for factor in (added.down, added.up))
        for tensor in (row.history, *row.conditions.values(), *factors):
            tensor.record_stream(main)
        return row


class StepPacer:
    """Keeps the host from running far ahead of the device, so that what it decides between two steps is not stale.

    Args:
        device: What computes. The CPU has always finished when a call returns.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last: Any = None
        self._before: Any = None

    def step(self) -> float | None:
        """Note that a step has been launched, and wait for the one before it: the device stays busy.

        Returns:
            Seconds on the device from the end of the last step but two to the end of the last but one; None where that
            is not known.
        """
        if not self._cuda:
            return None
        launched = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        launched.record()
        seconds = None
        if self._last is not None:
            self._last.synchronize()
            if self._before is not None:
                seconds = self._before.elapsed_time(self._last) / 1e3
        self._before, self._last = self._last, launched
        return seconds
