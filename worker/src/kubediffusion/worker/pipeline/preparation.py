"""What is prepared on a CUDA device after the worker is ready, piece by piece, while nobody waits for it.

The first image needs one batch size and the decoder. All others are captured before anything is compiled: a compiler
works for minutes, and nothing can be captured meanwhile.
"""

from __future__ import annotations

import logging

import torch

from kubediffusion.worker.pipeline.compiling import Compiler
from kubediffusion.worker.pipeline.decoding import Decoder
from kubediffusion.worker.pipeline.faults import check_device, is_out_of_memory
from kubediffusion.worker.pipeline.running import Machine

logger = logging.getLogger(__name__)


class Preparation:
    """Brings one machine to its best: every batch size captured, then everything compiled.

    Args:
        machine: What is prepared.
        decoder: Prepared with it.
        compiler: None for no compilation.
        device: A CUDA device.
    """

    def __init__(self, machine: Machine, decoder: Decoder, compiler: Compiler | None, device: torch.device) -> None:
        self._machine = machine
        self._decoder = decoder
        self._compiler = compiler
        self._device = device
        self._captured = False

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
        machine = self._machine
        missing = [size for size in machine.sizes if not machine.steps.ready(size)]
        if missing:
            try:
                machine.steps.prepare(missing[0])
            except Exception as error:
                check_device(self._device, error)
                if not is_out_of_memory(error):
                    raise
                # When a batch needs the size, and it still does not fit, the batch gets smaller.
                logger.warning("no memory to prepare a batch of %d", missing[0])
                missing = []
        self._captured = len(missing) <= 1
        if self._captured and self._compiler is not None:
            self._compiler.begin()
        return not self._captured

    def proceed(self) -> bool:
        """Do the next piece, in about a second.

        Returns:
            Whether there is another to do now: not while something is compiled, and not when all is done.

        Raises:
            EngineLostError: The device failed.
        """
        if not self._captured:
            self.capture()
            return True
        if self._compiler is None or self._compiler.busy:
            return False
        sizes = self._machine.sizes
        steps = self._machine.steps
        # First what a lone job needs, then what the most images need.
        if steps.prepare(sizes[0]) and self._decoder.prepare():
            return not all(steps.prepare(size) for size in reversed(sizes))
        return True
