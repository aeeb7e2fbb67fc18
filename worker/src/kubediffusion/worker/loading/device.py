"""Opens the CUDA device while the process still imports what will use it. Imports torch alone."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)


def open_device() -> None:
    """Make the device's context and load the libraries of matrix products and convolutions, by using each once.

    It takes a second or so, without Python's lock. On a machine without a device nothing is done, and a device that
    fails is left to whoever uses it next: they have the better message.
    """
    if not torch.cuda.is_available():
        return
    try:
        with torch.inference_mode():
            square = torch.ones(8, 8, device="cuda", dtype=torch.float16)
            torch.mm(square, square)
            torch.nn.functional.conv2d(square.view(1, 1, 8, 8), square[:3, :3].reshape(1, 1, 3, 3))
        torch.cuda.synchronize()
    except RuntimeError as error:
        logger.warning("the device could not be opened early: %s", error)
