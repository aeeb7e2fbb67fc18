"""Chooses the device, and opens it while the process still imports what will use it. Imports torch alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from kubediffusion.worker.settings import Settings

logger = logging.getLogger(__name__)

_HOPPER = 9
"""From here on cuDNN's attention is the faster one, and PyTorch multiplies float8 with a scale for each row."""


class DeviceUnavailableError(Exception):
    """A GPU was requested and cannot be used. Another node, or this one once repaired, may have a usable one."""


def choose_device(settings: Settings) -> torch.device:
    """Return the device that the model runs on.

    Raises:
        DeviceUnavailableError: The Pod has asked for a GPU, and the runtime has none.
    """
    if settings.device == "cpu":
        return torch.device("cpu")
    gpu = settings.requested_gpu
    if gpu is None and not torch.cuda.is_available():
        return torch.device("cpu")
    if (why := _why_unusable()) is None:
        return torch.device("cuda")
    if gpu is not None:
        raise DeviceUnavailableError(f"a GPU was requested ({gpu}) and cannot be used: {why}")
    logger.warning("the CPU is used, as no GPU was requested and the one that is there cannot be used: %s", why)
    return torch.device("cpu")


def is_hopper(device: torch.device) -> bool:
    """Return whether a device is a CUDA device of compute capability 9.0, Hopper's, or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= _HOPPER


def _why_unusable() -> str | None:
    """Return why nothing can be computed on a GPU, in the runtime's own words; None where it can.

    That the runtime finds one says little: this build may have no code for it, or another process has it for itself.
    """
    try:
        ones = torch.ones(2, device="cuda") + 1
        torch.cuda.synchronize()
        computed = ones.tolist()
    except Exception as error:  # noqa: BLE001 - a build without CUDA fails an assertion, a driver raises what it likes
        return str(error) or type(error).__name__
    if computed != [2.0, 2.0]:
        return f"1 + 1 gave {computed[0]}"
    return None if torch.cuda.is_available() else "PyTorch says that it is not available"


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device's memory that a model may take, now and if nobody else took any; None without a limit."""

    free: int | None
    total: int | None


def device_memory(device: torch.device, limit_mib: int | None) -> DeviceMemory:
    """Return how much of a device's memory a model may take. A CPU has no limit of its own.

    Args:
        device: The device.
        limit_mib: What the model's settings let it take, in MiB. This process can take no more of a CUDA device then.
    """
    limit = None if limit_mib is None else limit_mib * 2**20
    if device.type != "cuda":
        return DeviceMemory(limit, limit)
    free, total = torch.cuda.mem_get_info(device)
    if limit is None:
        return DeviceMemory(free, total)
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    return DeviceMemory(min(free, limit), min(total, limit))


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
