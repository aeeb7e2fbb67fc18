"""The UNet's attention on a CUDA device.

diffusers' own switch, ``set_attention_backend``, has no effect on it: a UNet's ``Attention`` calls PyTorch's attention
without a backend (docs/adr/0017).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0

from kubediffusion.worker.execution import cudnn

CUDNN_FROM = 32
"""Rows of the UNet, two an image, from which on cuDNN's attention is used in place of flash attention. The number comes
from a comparison on one H200; its figures are not kept in the repository."""


class FusedAttention(FusedAttnProcessor2_0):
    """diffusers' attention with fused projections, which has cuDNN compute large batches.

    The choice is part of the computation: see :mod:`.cudnn`.

    Args:
        cudnn: Whether the device is of a kind on which cuDNN is the faster one.
    """

    def __init__(self, *, cudnn: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cudnn = cudnn

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        **more: Any,
    ) -> torch.Tensor:
        """Compute one attention layer: ``[batch, places, channels]``, as diffusers' does."""
        if not self._cudnn or not takes_cudnn(attn, hidden_states, attention_mask):
            result: torch.Tensor = super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, *args, **more
            )
            return result
        if encoder_hidden_states is None:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query = attn.to_q(hidden_states)
            key, value = attn.to_kv(encoder_hidden_states).chunk(2, dim=-1)
        query, key, value = (given.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for given in (query, key, value))
        attended = cudnn.attend(query, key, value)
        projected: torch.Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        return projected


def takes_cudnn(attn: Any, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Return whether cuDNN computes a layer: plain attention of a transformer block, in a large batch."""
    return (
        cudnn.takes(hidden_states, attn.inner_dim // attn.heads, mask)
        and hidden_states.dim() == 3
        and len(hidden_states) >= CUDNN_FROM
        and attn.spatial_norm is None
        and attn.group_norm is None
        and attn.norm_q is None
        and attn.norm_k is None
        and not attn.norm_cross
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
    )
