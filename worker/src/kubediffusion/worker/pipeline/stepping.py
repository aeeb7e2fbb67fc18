"""Makes a batch's steps: as they are written, or from a CUDA graph for each batch size."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from kubediffusion.worker.pipeline.batch import Batch, denoise
from kubediffusion.worker.pipeline.compiling import Compiler
from kubediffusion.worker.pipeline.faults import is_out_of_memory
from kubediffusion.worker.pipeline.graphs import capture, tell_refused

logger = logging.getLogger(__name__)


class Steps(Protocol):
    """Makes a batch's steps."""

    def run(self, size: int) -> bool:
        """Launch one step of the first ``size`` slots, and tell whether it runs compiled."""

    def forget(self, size: int) -> None:
        """Free what was prepared for sizes from this one on: it does not fit the device's memory."""


class EagerSteps:
    """Makes steps as they are written.

    Args:
        batch: The batch.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def run(self, size: int) -> bool:
        """Make a step: see :meth:`Steps.run`."""
        history, control, conditions = self._batch.views(size)
        history.copy_(denoise(self._batch.unet, history, control, conditions))
        return False

    def forget(self, size: int) -> None:
        """Free nothing: nothing is prepared."""


class GraphedSteps:
    """Makes steps from a CUDA graph for each batch size, first of the plain step, then of the compiled one.

    Args:
        batch: The batch.
        compiler: Compiles in the background; None to stay with the plain step.
    """

    def __init__(self, batch: Batch, compiler: Compiler | None) -> None:
        self._batch = batch
        self._compiler = compiler
        self._eager = EagerSteps(batch)
        self._graphs: dict[int, Any] = {}
        self._compiled: dict[int, bool] = {}
        # Sizes of which no better graph than the one that is there, or none, could be captured.
        self._refused: set[int] = set()
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, size: int) -> bool:
        """Launch a step: see :meth:`Steps.run`."""
        if self._compiler is None or not self._compiler.busy:
            # Between two steps: a graph is captured by the thread that launches everything.
            self._prepare(size)
        if size not in self._graphs:
            return self._eager.run(size)
        self._graphs[size].replay()
        return self._compiled[size]

    def forget(self, size: int) -> None:
        """Drop the graphs of sizes from this one on: see :meth:`Steps.forget`."""
        for prepared in [prepared for prepared in self._graphs if prepared >= size]:
            del self._graphs[prepared], self._compiled[prepared]
        if not self._graphs:
            # PyTorch does not take a pool again that no graph uses any more.
            self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    def _prepare(self, size: int) -> None:
        if size in self._refused or self._compiled.get(size):
            return
        if size not in self._graphs:
            self._capture(size, denoise, compiled=False)
        if self._compiler is None or size in self._refused:
            return
        history, control, conditions = self._batch.views(size)

        def arguments() -> tuple[Any, ...]:
            # Copies: the running batch writes into its own.
            copies = {name: condition.clone() for name, condition in conditions.items()}
            return self._batch.unet, history.clone(), control.clone(), copies

        step = self._compiler.ready(self._batch, size, denoise, arguments)
        if step is not None:
            self._capture(size, step, compiled=True)

    def _capture(self, size: int, step: Callable[..., torch.Tensor], *, compiled: bool) -> None:
        began = time.monotonic()
        history, control, conditions = self._batch.views(size)
        try:
            self._graphs[size] = capture(
                lambda: step(self._batch.unet, history, control, conditions), history.copy_, self._pool
            )
        except Exception as error:
            if is_out_of_memory(error) and not compiled:
                raise
            tell_refused("step", error, size=size, compiled=compiled)
            self._refused.add(size)
            return
        self._compiled[size] = compiled
        seconds = round(time.monotonic() - began, 3)
        logger.info("batch size captured", extra={"size": size, "compiled": compiled, "seconds": seconds})
