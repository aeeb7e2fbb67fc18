"""The UNet in two parts, so that the deep one need not be computed at every call (DeepCache).

After Ma et al., "DeepCache: Accelerating Diffusion Models for Free", https://arxiv.org/abs/2312.00858, at its first
branch: the outermost layers are the first convolution, the last layer of the last up block, whose skip connection
comes from that convolution, and what follows. diffusers has caches for transformers only (``diffusers.hooks``), and a
UNet's own call gives no way in. Both parts follow that call, ``UNet2DConditionModel.forward``; a test compares them.
"""

from __future__ import annotations

from typing import Any

import torch

_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
"""Classes of blocks that Stable Diffusion's UNets consist of. Others have other layers."""

Added = dict[str, torch.Tensor] | None
"""Stable Diffusion XL's further conditions."""


def divisible(unet: Any) -> bool:
    """Return whether a UNet consists of blocks that :func:`whole` and :func:`shallow` know."""
    blocks = [*unet.down_blocks, *unet.up_blocks]
    return all(type(block).__name__ in _BLOCKS for block in blocks) and not unet.config.center_input_sample


def features_shape(unet: Any, latents: torch.Size) -> tuple[int, ...]:
    """Return the shape of one row's features: ``[channels, height, width]``.

    Args:
        unet: The UNet.
        latents: Shape of latents, whose last two are height and width.
    """
    layer = unet.up_blocks[-1].resnets[-1]
    return (layer.in_channels - unet.conv_in.out_channels, *latents[-2:])


def whole(
    unet: Any, latents: torch.Tensor, timesteps: torch.Tensor, prompts: torch.Tensor, added: Added
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the UNet as its own call does, and return its output and the features that :func:`shallow` needs."""
    embedded = _embedded(unet, latents, timesteps, prompts, added)
    hidden = unet.conv_in(latents)
    skips: tuple[torch.Tensor, ...] = (hidden,)
    for block in unet.down_blocks:
        hidden, more = block(hidden_states=hidden, temb=embedded, **_prompt_arguments(block, prompts))
        skips += more
    if unet.mid_block is not None:
        hidden = unet.mid_block(hidden, embedded, **_prompt_arguments(unet.mid_block, prompts))
    # Latents that cannot be halved so often come back by the size of what they meet.
    odd = any(side % 2**unet.num_upsamplers for side in latents.shape[-2:])
    for block in unet.up_blocks[:-1]:
        skips, met = skips[: -len(block.resnets)], skips[-len(block.resnets) :]
        size = skips[-1].shape[2:] if odd else None
        hidden = block(
            hidden_states=hidden,
            temb=embedded,
            res_hidden_states_tuple=met,
            upsample_size=size,
            **_prompt_arguments(block, prompts),
        )
    last = unet.up_blocks[-1]
    for layer in range(len(last.resnets) - 1):
        skips, met = skips[:-1], skips[-1:]
        hidden = _layer(last, layer, hidden, met[0], embedded, prompts)
    return _outermost(unet, hidden, skips[0], embedded, prompts), hidden


def shallow(
    unet: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    prompts: torch.Tensor,
    added: Added,
    features: torch.Tensor,
) -> torch.Tensor:
    """Compute the UNet's outermost layers on features of an earlier call, and return its output."""
    embedded = _embedded(unet, latents, timesteps, prompts, added)
    return _outermost(unet, features, unet.conv_in(latents), embedded, prompts)


def _embedded(
    unet: Any, latents: torch.Tensor, timesteps: torch.Tensor, prompts: torch.Tensor, added: Added
) -> torch.Tensor:
    embedded: torch.Tensor = unet.time_embedding(unet.get_time_embed(sample=latents, timestep=timesteps), None)
    more = unet.get_aug_embed(emb=embedded, encoder_hidden_states=prompts, added_cond_kwargs=added)
    embedded = embedded if more is None else embedded + more
    return embedded if unet.time_embed_act is None else unet.time_embed_act(embedded)


def _prompt_arguments(block: Any, prompts: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": prompts} if getattr(block, "has_cross_attention", False) else {}


def _layer(
    block: Any, layer: int, hidden: torch.Tensor, skip: torch.Tensor, embedded: torch.Tensor, prompts: torch.Tensor
) -> torch.Tensor:
    hidden = block.resnets[layer](torch.cat([hidden, skip], dim=1), embedded)
    if getattr(block, "has_cross_attention", False):
        hidden = block.attentions[layer](hidden, encoder_hidden_states=prompts, return_dict=False)[0]
    return hidden


def _outermost(
    unet: Any, features: torch.Tensor, skip: torch.Tensor, embedded: torch.Tensor, prompts: torch.Tensor
) -> torch.Tensor:
    if skip.is_contiguous(memory_format=torch.channels_last):
        # What was kept has lost its layout, and a convolution of two layouts is slow.
        features = features.contiguous(memory_format=torch.channels_last)
    block = unet.up_blocks[-1]
    hidden = _layer(block, len(block.resnets) - 1, features, skip, embedded, prompts)
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    output: torch.Tensor = unet.conv_out(hidden)
    return output
