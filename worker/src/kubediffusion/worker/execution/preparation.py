"""What is prepared on a CUDA device after the worker is ready, piece by piece, while nobody waits for it.

The first image needs one batch size and the decoder. All others are captured before anything is compiled: a compiler
works for minutes, and nothing can be captured meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch

from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.decoding import Decoder
from kubediffusion.worker.execution.faults import check_device, is_out_of_memory
from kubediffusion.worker.execution.local_executor import PreparedBatch

logger = logging.getLogger(__name__)


class Preparation:
    """Brings one prepared batch to its best: every batch size captured, then everything compiled.

    Args:
        prepared: What is prepared.
        decoder: Prepared with it.
        compiler: None for no compilation.
        device: A CUDA device.
    """

    def __init__(
        self, prepared: PreparedBatch, decoder: Decoder, compiler: Compiler | None, device: torch.device
    ) -> None:
        self.prepared = prepared
        self._decoder = decoder
        self._compiler = compiler
        self._device = device
        self._captured = False
        self._too_large: set[int] = set()

    @property
    def captured(self) -> bool:
        """Whether every batch size has a graph, or cannot have one."""
        return self._captured

    def capture(self) -> bool:
        """Capture one more batch size, in less than a second; after the last one compilation begins.

        Returns:
            Whether another is left.

        Raises:
            EngineLostError: The device failed.
        """
        if self._captured:
            return False
        if missing := self._missing():
            # The largest first: all others then find room in the memory of its graph.
            self._attempt(missing[-1])
            if missing[-1] in self._too_large:
                self._give_up(missing[-1])
        self._captured = not self._missing()
        if self._captured and self._compiler is not None:
            self._compiler.begin()
        return not self._captured

    def proceed(self) -> bool:
        """Do the next piece, in about a second; not while something is compiled.

        Returns:
            Whether there is another.

        Raises:
            EngineLostError: The device failed.
        """
        if not self._captured:
            self.capture()
            return True
        if self._compiler is None:
            return False
        try:
            steps = [partial(self._attempt, size) for size in self._sizes()]
            # First what a lone job needs, then what the most images need.
            parts: list[Callable[[], bool]] = [*steps[:1], self._decoder.prepare, *reversed(steps[1:])]
            return not all(part() for part in parts)
        except Exception as error:
            check_device(self._device, error)
            raise

    def _sizes(self) -> tuple[int, ...]:
        return tuple(size for size in self.prepared.sizes if size not in self._too_large)

    def _missing(self) -> list[int]:
        return [size for size in self._sizes() if not self.prepared.step_runner.ready(size)]

    def _give_up(self, size: int) -> None:
        """Use no batches of a size or more, unless a larger one is there: it did fit once."""
        prepared = self.prepared
        if not any(prepared.step_runner.ready(other) for other in prepared.sizes if other > size):
            prepared.sizes = tuple(other for other in prepared.sizes if other < size) or prepared.sizes[:1]

    def _attempt(self, size: int) -> bool:
        """Bring a size further, and return whether it is as fast as it gets, or does not fit."""
        try:
            return self.prepared.step_runner.prepare(size)
        except Exception as error:
            check_device(self._device, error)
            if not is_out_of_memory(error):
                raise
            logger.warning("no memory to prepare a batch of %d", size)
            self._too_large.add(size)
            return True
