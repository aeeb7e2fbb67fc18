"""Copies between the host and a CUDA device that wait for nothing."""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host without waiting for it."""
    if device.type != "cuda":
        return tensor
    # PyTorch keeps the pinned memory until the device has read it.
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the host; it is there when the current stream has come so far."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
