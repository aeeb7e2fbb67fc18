"""Tiny autoencoders."""

from __future__ import annotations

from typing import Any

import diffusers


def kl(channels: int = 4, blocks: int = 2, **more: Any) -> Any:
    """The usual one, whose latents are so many times halved as it has blocks, less one."""
    # Many halvings are for those that make large images whatever they are asked for: fewer channels.
    widths = (8, 16, 16, 16) if blocks <= 4 else (4, 8, 8, 8, 16, 16)
    options = {
        "block_out_channels": widths[:blocks],
        "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "latent_channels": channels,
        "sample_size": 64,
    }
    return diffusers.AutoencoderKL(**(options | more))


def flow(channels: int = 4, blocks: int = 2, **more: Any) -> Any:
    """The one of SD3, FLUX.1 and their kin: shifted, and without convolutions around the latents."""
    options = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.0609, "scaling_factor": 1.5035}
    return kl(channels, blocks, **(options | more))


def flux2(channels: int = 4, blocks: int = 2) -> Any:
    """The one of FLUX.2, which normalises packed latents by running statistics."""
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16, 16, 16)[:blocks],
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=channels,
        sample_size=64,
    )


def qwen(channels: int = 4, kind: str = "AutoencoderKLQwenImage", **more: Any) -> Any:
    """The one of Qwen-Image (and Wan): three-dimensional, with a mean and a deviation by channel."""
    options = {
        "base_dim": 8,
        "z_dim": channels,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
        "latents_mean": [0.1 * channel for channel in range(channels)],
        "latents_std": [1 + 0.1 * channel for channel in range(channels)],
    }
    return getattr(diffusers, kind)(**(options | more))


def deep_compression(channels: int = 4) -> Any:
    """The one of Sana."""
    return diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=channels,
        attention_head_dim=2,
        encoder_block_types=(*["ResBlock"] * 5, "EfficientViTBlock"),
        decoder_block_types=(*["ResBlock"] * 5, "EfficientViTBlock"),
        encoder_block_out_channels=(4, 4, 8, 8, 8, 8),
        decoder_block_out_channels=(4, 4, 8, 8, 8, 8),
        encoder_qkv_multiscales=(*[()] * 5, (5,)),
        decoder_qkv_multiscales=(*[()] * 5, (5,)),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
