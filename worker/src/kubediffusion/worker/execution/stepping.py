"""Makes a batch's steps: as they are written, or from a CUDA graph for each batch size and mode."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from kubediffusion.worker.engine.forward_mode import FULL, ForwardMode
from kubediffusion.worker.execution import graphs
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.graphs import refuse
from kubediffusion.worker.execution.slots import InputBatch, SlotTensors

logger = logging.getLogger(__name__)


class StepRunner(Protocol):
    """Makes a batch's steps."""

    def run(self, size: int) -> bool:
        """Launch one step of the first ``size`` slots, and return whether it runs compiled."""

    def ready(self, size: int) -> bool:
        """Return whether the next step of a size need not be captured first."""

    def prepare(self, size: int) -> bool:
        """Capture a size, or have it compiled, as far as can be done now; not while something is compiled.

        Returns:
            Whether it is as fast as it gets.
        """

    def of(self, mode: ForwardMode) -> StepRunner:
        """Return the steps of another mode. Only the object that all modes came from evicts them."""

    def evict(self) -> None:
        """Free what was prepared, as the device's memory does not suffice. It is prepared anew where it is used."""


class EagerStepRunner:
    """Makes steps as they are written.

    Args:
        slots: The slots.
        mode: What a step computes.

    Attributes:
        mode: What a step computes.
    """

    def __init__(self, slots: SlotTensors, mode: ForwardMode = FULL) -> None:
        self._slots = slots
        self.mode = mode

    def run(self, size: int) -> bool:
        """Make a step: see :meth:`StepRunner.run`."""
        work = self._slots.input_batch(size, self.mode)
        work.store(work.function(*work.arguments))
        return False

    def ready(self, _size: int) -> bool:
        """Return True, as nothing is captured: see :meth:`StepRunner.ready`."""
        return True

    def prepare(self, _size: int) -> bool:
        """Prepare nothing: see :meth:`StepRunner.prepare`."""
        return True

    def of(self, mode: ForwardMode) -> EagerStepRunner:
        """Return the steps of another mode: see :meth:`StepRunner.of`."""
        return EagerStepRunner(self._slots, mode)

    def evict(self) -> None:
        """Free nothing: nothing is prepared."""


@dataclass
class _Pool:
    """Memory that the graphs of all modes share: no two run at the same time."""

    handle: Any = field(default_factory=lambda: torch.cuda.graph_pool_handle())


class CudaGraphManager:
    """Makes steps from a CUDA graph for each batch size, first of the plain step, then of the compiled one.

    Args:
        slots: The slots.
        compiler: Compiles in the background; None to stay with the plain step.
        mode: What a step computes.
        pool: Memory of the graphs.
    """

    def __init__(
        self, slots: SlotTensors, compiler: Compiler | None, mode: ForwardMode = FULL, pool: _Pool | None = None
    ) -> None:
        self._slots = slots
        self._compiler = compiler
        self._mode = mode
        self._eager = EagerStepRunner(slots, mode)
        self._graphs: dict[int, Any] = {}
        self._compiled: dict[int, bool] = {}
        # Sizes of which no better graph than the one that is there, or none, can be had.
        self._refused: set[int] = set()
        self._pool = pool or _Pool()
        self._others: dict[ForwardMode, CudaGraphManager] = {}

    @property
    def captured(self) -> Mapping[int, bool]:
        """The sizes that have a graph, and whether it is of compiled code."""
        return self._compiled

    @property
    def others(self) -> Mapping[ForwardMode, CudaGraphManager]:
        """The steps of the other modes that were asked for."""
        return self._others

    def run(self, size: int) -> bool:
        """Launch a step: see :meth:`StepRunner.run`."""
        if self._compiler is None or not self._compiler.busy:
            # Between two steps: a graph is captured by the thread that launches everything.
            self.prepare(size)
        if size not in self._graphs:
            return self._eager.run(size)
        self._graphs[size].replay()
        return self._compiled[size]

    def ready(self, size: int) -> bool:
        """Return whether a size has a graph, or cannot have one: see :meth:`StepRunner.ready`."""
        return size in self._graphs or size in self._refused

    def prepare(self, size: int) -> bool:
        """Do the next thing that a size lacks: see :meth:`StepRunner.prepare`."""
        if self._settled(size):
            return True
        work = self._slots.input_batch(size, self._mode)
        if size not in self._graphs:
            self._capture(size, work, work.function, compiled=False)
            if self._mode != FULL:
                # Compiled at the next use: a batch that needs several modes captures them first.
                return self._settled(size)
        if self._compiler is None or size in self._refused:
            return True

        key = (size, self._mode)
        step = self._compiler.ready(self._slots, key, work.function, work.copies, by_blocks=work.by_blocks)
        if step is not None:
            self._capture(size, work, step, compiled=True)
        elif self._compiler.refused(self._slots, key):
            self._refused.add(size)
        return self._settled(size)

    def _settled(self, size: int) -> bool:
        plain = self._compiler is None and size in self._graphs
        return plain or size in self._refused or self._compiled.get(size, False)

    def of(self, mode: ForwardMode) -> CudaGraphManager:
        """Return the steps of another mode: see :meth:`StepRunner.of`."""
        if mode == self._mode:
            return self
        if mode not in self._others:
            for other in [other for other in self._others if other.adapters not in {0, mode.adapters}]:
                # No step belongs to an earlier set of adapted layers any more.
                self._others.pop(other).drop()
            self._others[mode] = CudaGraphManager(self._slots, self._compiler, mode, self._pool)
        return self._others[mode]

    def evict(self) -> None:
        """Drop the graphs of all sizes and modes: see :meth:`StepRunner.evict`.

        They share their memory, so none of it is given back while one of them is left.
        """
        for steps in (self, *self._others.values()):
            steps.drop()
        # PyTorch does not take a pool again that no graph uses any more.
        self._pool.handle = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    def drop(self) -> None:
        """Drop this mode's graphs alone."""
        # A size that had a graph is captured anew. One that never had any still runs as it is written.
        self._refused.difference_update(self._graphs)
        self._graphs.clear()
        self._compiled.clear()

    def _capture(self, size: int, work: InputBatch, step: Callable[..., Any], *, compiled: bool) -> None:
        began = time.monotonic()
        try:
            self._graphs[size] = graphs.capture(lambda: step(*work.arguments), work.store, self._pool.handle)
        except Exception as error:  # noqa: BLE001 - what was there before serves
            refuse("step", error, self._slots.device, compiled=compiled, size=size)
            self._refused.add(size)
            return
        self._compiled[size] = compiled
        seconds = round(time.monotonic() - began, 3)
        logger.info("batch size captured", extra={"size": size, "compiled": compiled, "seconds": seconds})
