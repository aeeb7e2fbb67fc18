"""Diffusion transformers that read T5, Gemma or BERT beside it: Sana, PixArt, Lumina 2, Hunyuan."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from census import autoencoders, encoders, texts
from census.builders.stable_diffusion import noise
from census.registry import model


def sana(**more: Any) -> dict[str, Any]:
    """Components of Sana, whose prompt begins with an instruction."""
    return {
        "tokenizer": texts.gemma(),
        "text_encoder": encoders.gemma2(),
        "vae": autoencoders.deep_compression(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "transformer": sana_transformer(),
    } | more


def sana_transformer(**more: Any) -> Any:
    options = {
        "patch_size": 1,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 16,
        "sample_size": 16,
    }
    return diffusers.SanaTransformer2DModel(**(options | more))


@model("sana", "SanaPipeline", sizes=((512, 512), (608, 416)), steps=20, guidance=4.5, gigabytes=9)
def sana_pipeline() -> Any:
    return diffusers.SanaPipeline(**sana())


@model("sana-pag", "SanaPAGPipeline", sizes=((512, 512), (608, 416)), steps=20, guidance=4.5, gigabytes=9)
def sana_pag() -> Any:
    return diffusers.SanaPAGPipeline(**sana(), pag_applied_layers=["transformer_blocks.0"])


@model("sana-sprint", "SanaSprintPipeline", sizes=((1024, 1024), (1216, 832)), steps=2, guidance=4.5, gigabytes=9)
def sana_sprint() -> Any:
    distilled = sana_transformer(sample_size=32, qk_norm="rms_norm_across_heads", guidance_embeds=True)
    return diffusers.SanaSprintPipeline(**sana(scheduler=diffusers.SCMScheduler(), transformer=distilled))


def pixart(size: int = 32) -> dict[str, Any]:
    """Components of PixArt."""
    return {
        "tokenizer": texts.t5(),
        "text_encoder": encoders.t5(),
        "vae": autoencoders.kl(blocks=4),
        "scheduler": noise("DPMSolverMultistepScheduler"),
        "transformer": diffusers.PixArtTransformer2DModel(
            sample_size=size,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        ),
    }


@model(
    "pixart-alpha",
    "PixArtAlphaPipeline",
    sizes=((256, 256), (320, 208)),
    steps=20,
    guidance=4.5,
    precision="float16",
    gigabytes=11,
)
def pixart_alpha() -> Any:
    return diffusers.PixArtAlphaPipeline(**pixart())


@model(
    "pixart-sigma",
    "PixArtSigmaPipeline",
    sizes=((256, 256), (320, 208)),
    steps=20,
    guidance=4.5,
    precision="float16",
    gigabytes=11,
)
def pixart_sigma() -> Any:
    return diffusers.PixArtSigmaPipeline(**pixart())


@model(
    "pixart-sigma-pag",
    "PixArtSigmaPAGPipeline",
    sizes=((256, 256), (320, 208)),
    steps=20,
    guidance=4.5,
    precision="float16",
    gigabytes=11,
)
def pixart_sigma_pag() -> Any:
    return diffusers.PixArtSigmaPAGPipeline(**pixart(), pag_applied_layers=["transformer_blocks.0"])


@model("lumina-2", "Lumina2Pipeline", steps=50, guidance=4.0, gigabytes=10.5)
def lumina_2() -> Any:
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            ffn_dim_multiplier=None,
            norm_eps=1e-5,
            scaling_factor=1.0,
            axes_dim_rope=(8, 4, 4),
            axes_lens=(300, 64, 64),
            cap_feat_dim=16,
        ),
        vae=autoencoders.flow(blocks=4),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        text_encoder=encoders.gemma2(),
        tokenizer=texts.gemma(),
    )


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=texts.BERT_VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=128,
    )
    return transformers.BertModel(config)


def hunyuan_dit() -> dict[str, Any]:
    """Components of Hunyuan-DiT, whose second encoder is a multilingual T5."""
    return {
        "transformer": diffusers.HunyuanDiT2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            cross_attention_dim=32,
            cross_attention_dim_t5=32,
            pooled_projection_dim=16,
            hidden_size=24,
            activation_fn="gelu-approximate",
        ),
        "vae": autoencoders.kl(blocks=4),
        "scheduler": noise("DDPMScheduler"),
        "text_encoder": bert(),
        "tokenizer": texts.bert(),
        "text_encoder_2": encoders.t5(),
        "tokenizer_2": texts.t5(256),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@model(
    "hunyuan-dit",
    "HunyuanDiTPipeline",
    sizes=((1024, 1024), (1280, 768)),
    steps=50,
    guidance=5.0,
    precision="float16",
    gigabytes=7,
)
def hunyuan_dit_pipeline() -> Any:
    return diffusers.HunyuanDiTPipeline(**hunyuan_dit())


@model(
    "hunyuan-dit-pag",
    "HunyuanDiTPAGPipeline",
    sizes=((1024, 1024), (1280, 768)),
    steps=50,
    guidance=5.0,
    precision="float16",
    gigabytes=7,
)
def hunyuan_dit_pag() -> Any:
    return diffusers.HunyuanDiTPAGPipeline(**hunyuan_dit(), pag_applied_layers=["blocks.0"])
