"""FLUX.1: distilled with embedded guidance, distilled to few steps, and not distilled."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import diffusers
import torch
import transformers
from unit.worker.families.tiny_parts import clip, kl_vae, t5, t5_tokenizer, tokenizer

from kubediffusion.worker.engine import ImageRequest
from unit.worker.families.parity import FamilyRow


def build(*, guidance_embeds: bool, shifted: bool) -> diffusers.FluxPipeline:
    """Build a tiny pipeline.

    Args:
        guidance_embeds: Whether the transformer is told the guidance scale.
        shifted: Whether the schedule is shifted by the image's size.
    """
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=shifted),
        vae=kl_vae(latent_channels=4),
        text_encoder=clip(transformers.CLIPTextModel),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def true_guidance(request: ImageRequest) -> Mapping[str, Any]:
    """Pass the guidance scale as classifier-free guidance's, which needs a negative prompt."""
    return {"true_cfg_scale": request.shape.guidance, "negative_prompt": request.negative_prompt or ""}


def embedded(request: ImageRequest) -> Mapping[str, Any]:
    """Pass the guidance scale alone."""
    return {"guidance_scale": request.shape.guidance}


ROWS = [
    FamilyRow("flux-dev", partial(build, guidance_embeds=True, shifted=True), embedded),
    FamilyRow("flux-schnell", partial(build, guidance_embeds=False, shifted=False), embedded),
    FamilyRow("flux-undistilled", partial(build, guidance_embeds=False, shifted=True), true_guidance),
]
