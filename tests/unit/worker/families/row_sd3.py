"""Stable Diffusion 3, with and without T5, and 3.5, whose transformer normalizes queries and has dual attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
import transformers
from unit.worker.families.tiny_parts import clip, kl_vae, t5, t5_tokenizer, tokenizer

from unit.worker.families.parity import FamilyRow


def build(*, with_t5: bool, shifted: bool, **transformer: Any) -> diffusers.StableDiffusion3Pipeline:
    """Build a tiny pipeline.

    Args:
        with_t5: Whether it has the third text encoder.
        shifted: Whether the schedule is shifted by the image's size.
        transformer: More of the transformer's configuration.
    """
    torch.manual_seed(0)
    return diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=shifted),
        vae=kl_vae(latent_channels=4),
        text_encoder=clip(transformers.CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        text_encoder_2=clip(transformers.CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5() if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=32,
            patch_size=1,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
            **transformer,
        ),
    )


ROWS = [
    FamilyRow("sd3", partial(build, with_t5=True, shifted=False)),
    FamilyRow("sd3-without-t5", partial(build, with_t5=False, shifted=False)),
    FamilyRow("sd35", partial(build, with_t5=True, shifted=True, qk_norm="rms_norm", dual_attention_layers=(0,))),
]
