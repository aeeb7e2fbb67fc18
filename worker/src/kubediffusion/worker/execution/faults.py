"""What went wrong, and whether the device survived it."""

from __future__ import annotations

import gc

import torch

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.worker.engine import EngineLostError


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that the device's memory does not suffice."""
    # On the CPU PyTorch raises a plain RuntimeError: "[enforce fail at alloc_cpu.cpp] … can't allocate memory".
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def check_device(device: torch.device, error: Exception) -> None:
    """Free memory that nobody uses after an error of memory, and find out whether the device still works.

    Raises:
        EngineLostError: After some CUDA errors every later call of the process fails; or the error itself is one.
    """
    if isinstance(error, EngineLostError):
        raise error
    if is_out_of_memory(error):
        # Tracebacks of earlier failures may hold tensors in cycles, which the collector seldom looks for.
        gc.collect()
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize()
        if is_out_of_memory(error):
            torch.cuda.empty_cache()
    except Exception as broken:
        raise EngineLostError(f"the CUDA device is lost: {broken}") from broken


def failure(error: Exception) -> JobFailure:
    """Return the failure of an image that ran alone when an error was raised."""
    if is_out_of_memory(error):
        return JobFailure(
            ErrorCode.OUT_OF_MEMORY,
            f"the image does not fit the device's memory, even alone; ask for a smaller one ({error})",
        )
    return JobFailure(ErrorCode.PIPELINE_FAILED, f"{type(error).__name__}: {error}")


def not_numbers(torch_dtype: str) -> JobFailure:
    """Return the failure of an image whose pixels are not finite numbers."""
    return JobFailure(
        ErrorCode.INVALID_IMAGE,
        f"the pipeline gave pixels that are not numbers, in {torch_dtype}; other parameters, or torchDtype float32 or "
        "bfloat16 for the model, may help",
    )
