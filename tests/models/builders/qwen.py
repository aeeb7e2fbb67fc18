"""Pipelines whose text encoder is a Qwen: Qwen-Image, Z-Image, Krea 2 and others."""

from __future__ import annotations

from typing import Any

import diffusers

from models import autoencoders, encoders, texts
from models.builders.flux import shifted
from models.registry import model


def transformer(**more: Any) -> Any:
    options = {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (8, 4, 4),
    }
    return diffusers.QwenImageTransformer2DModel(**(options | more))


def scheduler() -> Any:
    """Qwen-Image's, which ends above zero."""
    return shifted(max_image_seq_len=8192, max_shift=0.9, shift=1.0, shift_terminal=0.02)


def parts(**more: Any) -> dict[str, Any]:
    """Components of Qwen-Image."""
    components = {
        "scheduler": scheduler(),
        "vae": autoencoders.qwen(),
        "text_encoder": encoders.qwen25_vl(),
        "tokenizer": texts.qwen(),
        "transformer": transformer(),
    }
    return components | more


@model("qwen-image", "QwenImagePipeline", steps=50, guidance=4.0, gigabytes=58)
def qwen_image() -> Any:
    return diffusers.QwenImagePipeline(**parts())


def z_transformer() -> Any:
    return diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )


def z_parts(**more: Any) -> dict[str, Any]:
    """Components of Z-Image."""
    components = {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": autoencoders.flow(scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": encoders.qwen3(layers=3),
        "tokenizer": texts.qwen(),
        "transformer": z_transformer(),
    }
    return components | more


@model("z-image-turbo", "ZImagePipeline", steps=9, guidance=0.0, gigabytes=21)
def z_image_turbo() -> Any:
    return diffusers.ZImagePipeline(**z_parts())


@model("krea-2", "Krea2Pipeline", steps=28, guidance=4.5)
def krea_2() -> Any:
    return diffusers.Krea2Pipeline(
        scheduler=shifted(max_image_seq_len=6400, shift=1.0),
        vae=autoencoders.qwen(),
        text_encoder=encoders.qwen3_vl(),
        tokenizer=texts.qwen(),
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=16,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        ),
        text_encoder_select_layers=(0, 1, 2),
    )
