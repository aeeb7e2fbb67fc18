"""A transformer's attention on a CUDA device.

diffusers' own switch, ``set_attention_backend("_native_cudnn")``, has PyTorch choose cuDNN's kernel for the whole
process. Here the kernel is called by its name (see :mod:`.cudnn`), under the same switch.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from kubediffusion.worker.engine import described
from kubediffusion.worker.execution import cudnn

logger = logging.getLogger(__name__)


def use_cudnn(denoiser: Any) -> None:
    """Have a transformer's attention computed by cuDNN where it can be, and its attention has a switch.

    Args:
        denoiser: A model of diffusers; None where a pipeline has none of this name.
    """
    if not hasattr(denoiser, "set_attention_backend"):
        return
    backends = _AttentionBackendRegistry._backends  # noqa: SLF001 - where diffusers looks a backend up
    native, theirs = backends[AttentionBackendName.NATIVE], backends[AttentionBackendName._NATIVE_CUDNN]  # noqa: SLF001
    if theirs is not _attend:
        _OTHERS.update(native=native, parallel=theirs)
        backends[AttentionBackendName._NATIVE_CUDNN] = _attend  # noqa: SLF001
    try:
        denoiser.set_attention_backend(AttentionBackendName._NATIVE_CUDNN.value)  # noqa: SLF001
    except Exception as error:  # noqa: BLE001 - its processors know no backends: PyTorch chooses, as it did before
        logger.warning("the attention of %s has no switch", type(denoiser).__name__, extra=described(error))


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
    if dropout_p or enable_gqa or not cudnn.takes(query, query.shape[-1], attn_mask):
        return _OTHERS["native"](query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    query, key, value = (given.transpose(1, 2) for given in (query, key, value))
    return cudnn.attend(query, key, value, is_causal=is_causal, scale=scale).transpose(1, 2)
