"""A transformer's attention on a CUDA device.

diffusers' own switch, ``set_attention_backend("_native_cudnn")``, has PyTorch choose cuDNN's kernel by
``sdpa_kernel``, which holds for the whole process: the thread that compiles would change the kernels of an image that
another thread computes. Here the kernel is called by its name, under the same switch.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

_LARGEST_HEAD = 128
"""Largest head that cuDNN takes on every device; it also has to be a multiple of 8."""


def use_cudnn(denoiser: Any) -> bool:
    """Have a transformer's attention computed by cuDNN where it can be, and return whether its attention has a switch.

    Args:
        denoiser: A model of diffusers.
    """
    if not hasattr(denoiser, "set_attention_backend"):
        return False
    backends = _AttentionBackendRegistry._backends  # noqa: SLF001 - where diffusers looks a backend up
    native, theirs = backends[AttentionBackendName.NATIVE], backends[AttentionBackendName._NATIVE_CUDNN]  # noqa: SLF001
    if theirs is not _attend:
        _OTHERS.update(native=native, parallel=theirs)
        backends[AttentionBackendName._NATIVE_CUDNN] = _attend  # noqa: SLF001
    try:
        denoiser.set_attention_backend(AttentionBackendName._NATIVE_CUDNN.value)  # noqa: SLF001
    except Exception:  # noqa: BLE001 - its processors know no backends
        return False
    return True


_OTHERS: dict[str, Any] = {}
"""diffusers' functions for what is not computed here."""


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _parallel_config: Any = None,
) -> Any:
    """Attend: ``[batch, places, heads, channels]`` each, as diffusers' backends take them."""
    if return_lse or _parallel_config is not None:
        return _OTHERS["parallel"](
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse, _parallel_config
        )
    if dropout_p or enable_gqa or not takes_cudnn(query, attn_mask):
        return _OTHERS["native"](query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    query, key, value = (given.transpose(1, 2) for given in (query, key, value))
    attended = torch.ops.aten._scaled_dot_product_cudnn_attention(  # noqa: SLF001 - PyTorch's name for it
        query, key, value, None, False, 0.0, is_causal, False, scale=scale
    )
    return attended[0].transpose(1, 2)


def takes_cudnn(query: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Return whether cuDNN computes an attention: in half precision, of heads that it knows, to all places alike."""
    size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and size % 8 == 0
        and size <= _LARGEST_HEAD
        and mask is None
    )
