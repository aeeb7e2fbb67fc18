"""cuDNN's attention, called by its name.

PyTorch's own choice of a kernel, ``sdpa_kernel``, holds for the whole process: made by the thread that compiles, it
would change kernels in the middle of an image whose pixels must repeat.
"""

from __future__ import annotations

import torch

_LARGEST_HEAD = 128
"""Largest head that cuDNN takes on every device; it also has to be a multiple of 8."""


def takes(states: torch.Tensor, head: int, mask: torch.Tensor | None) -> bool:
    """Return whether cuDNN computes an attention: in half precision, of heads that it knows, to all places alike.

    Args:
        states: What is attended with.
        head: Channels of a head.
        mask: Of the places; None for none.
    """
    return (
        states.is_cuda
        and states.dtype in (torch.float16, torch.bfloat16)
        and head % 8 == 0
        and head <= _LARGEST_HEAD
        and mask is None
    )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Attend: ``[batch, heads, places, channels]`` each, and so is what is returned."""
    attended: torch.Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(  # noqa: SLF001 - PyTorch's name for it
        query, key, value, None, False, 0.0, is_causal, False, scale=scale
    )[0]
    return attended
