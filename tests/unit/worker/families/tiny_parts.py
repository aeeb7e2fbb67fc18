"""Parts that the tiny pipelines of several families are built of: random weights, tokenizers made on the spot."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from kubediffusion.worker import testing

WIDTH = 32
"""Channels of every text encoder."""


def tokenizer() -> Any:
    """Make a CLIP tokenizer of letters."""
    return testing.clip_tokenizer()


def t5_tokenizer() -> Any:
    """Make a tokenizer of letters without a limit of length."""
    return testing.t5_tokenizer()


def clip(kind: type[Any]) -> Any:
    """Make a CLIP text encoder of a class of transformers."""
    return kind(testing.clip_config()).eval()


def t5() -> Any:
    """Make a T5 encoder."""
    config = transformers.T5Config(
        vocab_size=testing.VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4
    )
    return transformers.T5EncoderModel(config).eval()


def kl_vae(latent_channels: int) -> Any:
    """Make a VAE that halves each side."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    ).eval()
