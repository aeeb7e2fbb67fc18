"""Stable Diffusion 1, 2, XL and 3."""

from __future__ import annotations

from typing import Any

import diffusers

from census import autoencoders, encoders, texts
from census.registry import model


def unet(cross_attention_dim: int = 32, **more: Any) -> Any:
    options = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": cross_attention_dim,
    }
    return diffusers.UNet2DConditionModel(**(options | more))


def noise(kind: str = "PNDMScheduler", **more: Any) -> Any:
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if kind == "PNDMScheduler":
        options |= {"skip_prk_steps": True}
    return getattr(diffusers, kind)(**(options | more))


def parts(**more: Any) -> dict[str, Any]:
    """Components of Stable Diffusion 1."""
    components = {
        "vae": autoencoders.kl(),
        "text_encoder": encoders.clip(),
        "tokenizer": texts.clip(),
        "unet": unet(),
        "scheduler": noise(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return components | more


def parts_xl(**more: Any) -> dict[str, Any]:
    """Components of Stable Diffusion XL."""
    components = {
        "vae": autoencoders.kl(),
        "text_encoder": encoders.clip(),
        "text_encoder_2": encoders.clip("CLIPTextModelWithProjection"),
        "tokenizer": texts.clip(),
        "tokenizer_2": texts.clip(),
        "unet": unet(64, **unet_xl()),
        "scheduler": noise("EulerDiscreteScheduler"),
    }
    return components | more


def unet_xl() -> dict[str, Any]:
    """What Stable Diffusion XL's UNet has besides."""
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
    }


@model("stable-diffusion", "StableDiffusionPipeline", steps=50, guidance=7.5, precision="float16", gigabytes=2.1)
def stable_diffusion() -> Any:
    return diffusers.StableDiffusionPipeline(**parts())


@model("stable-diffusion-2", "StableDiffusionPipeline", steps=50, guidance=7.5, precision="float16", gigabytes=2.6)
def stable_diffusion_2() -> Any:
    predicted = noise("DDIMScheduler", prediction_type="v_prediction", set_alpha_to_one=False)
    return diffusers.StableDiffusionPipeline(**parts(scheduler=predicted, unet=unet(use_linear_projection=True)))


@model("stable-diffusion-xl", "StableDiffusionXLPipeline", steps=50, guidance=5.0, precision="float16", gigabytes=6.9)
def stable_diffusion_xl() -> Any:
    return diffusers.StableDiffusionXLPipeline(**parts_xl())


def parts_3(**more: Any) -> dict[str, Any]:
    """Components of Stable Diffusion 3."""
    components = {
        "transformer": transformer_3(),
        "vae": autoencoders.flow(),
        "text_encoder": encoders.clip("CLIPTextModelWithProjection"),
        "text_encoder_2": encoders.clip("CLIPTextModelWithProjection"),
        "text_encoder_3": encoders.t5(),
        "tokenizer": texts.clip(),
        "tokenizer_2": texts.clip(),
        "tokenizer_3": texts.t5(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    return components | more


def transformer_3(**more: Any) -> Any:
    options = {
        "sample_size": 32,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_projection_dim": 32,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 48,
    }
    return diffusers.SD3Transformer2DModel(**(options | more))


def _t5_of_64() -> Any:
    return encoders.t5(64)


@model("stable-diffusion-3", "StableDiffusion3Pipeline", steps=28, guidance=7.0, precision="float16", gigabytes=15)
def stable_diffusion_3() -> Any:
    return diffusers.StableDiffusion3Pipeline(**parts_3(text_encoder_3=_t5_of_64()))


@model("stable-diffusion-3.5", "StableDiffusion3Pipeline", steps=28, guidance=4.5, gigabytes=27)
def stable_diffusion_3_5() -> Any:
    # Two attentions in its first block, and queries and keys that are normalised, tell it from 3.
    larger = transformer_3(qk_norm="rms_norm", dual_attention_layers=(0,))
    return diffusers.StableDiffusion3Pipeline(**parts_3(text_encoder_3=_t5_of_64(), transformer=larger))


@model("stable-diffusion-3-without-t5", "StableDiffusion3Pipeline", steps=28, guidance=7.0, precision="float16")
def stable_diffusion_3_without_t5() -> Any:
    return diffusers.StableDiffusion3Pipeline(**parts_3(text_encoder_3=None, tokenizer_3=None))
