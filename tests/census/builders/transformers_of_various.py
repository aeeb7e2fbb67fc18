"""Diffusion transformers that read T5, GLM, Llama or several of them: AuraFlow, CogView, HiDream, Kandinsky 3, Bria."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from census import autoencoders, encoders, texts
from census.builders.stable_diffusion import noise
from census.registry import model


@model("aura-flow", "AuraFlowPipeline", steps=50, guidance=3.5, precision="float16", gigabytes=16)
def aura_flow() -> Any:
    return diffusers.AuraFlowPipeline(
        tokenizer=texts.llama(pad_token="</s>"),
        text_encoder=encoders.t5(kind="UMT5EncoderModel", vocab_size=texts.LLAMA_VOCABULARY),
        vae=autoencoders.kl(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            out_channels=4,
            pos_embed_max_size=4096,
        ),
    )


@model("cogview-3-plus", "CogView3PlusPipeline", steps=50, guidance=7.0, gigabytes=16)
def cogview_3_plus() -> Any:
    return diffusers.CogView3PlusPipeline(
        tokenizer=texts.t5(224),
        text_encoder=encoders.t5(),
        vae=autoencoders.kl(),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
        transformer=diffusers.CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=2,
            pos_embed_max_size=24,
            sample_size=32,
        ),
    )


GLM_MARKS = ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>")


@model("cogview-4", "CogView4Pipeline", steps=50, guidance=3.5, gigabytes=31)
def cogview_4() -> Any:
    return diffusers.CogView4Pipeline(**cogview_4_parts())


def cogview_4_parts(**more: Any) -> dict[str, Any]:
    """Components of CogView 4."""
    glm = transformers.GlmConfig(
        vocab_size=256 + len(GLM_MARKS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=256,
        eos_token_id=256,
    )
    return {
        "tokenizer": texts.byte_level(
            GLM_MARKS, begin=("[gMASK]", "<sop>"), pad_token="<|endoftext|>", eos_token="<|endoftext|>"
        ),
        "text_encoder": transformers.GlmModel(glm),
        "vae": autoencoders.kl(use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
        "transformer": diffusers.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=4,
        ),
    } | more


LLAMA_3_MARKS = ("<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>")


@model("hidream-i1", "HiDreamImagePipeline", sizes=((256, 256), (320, 192)), steps=50, guidance=5.0, gigabytes=61)
def hidream() -> Any:
    return diffusers.HiDreamImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoders.flow(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=encoders.clip("CLIPTextModelWithProjection", max_position_embeddings=248),
        tokenizer=texts.clip(),
        text_encoder_2=encoders.clip("CLIPTextModelWithProjection", max_position_embeddings=218),
        tokenizer_2=texts.clip(),
        text_encoder_3=encoders.t5(),
        tokenizer_3=texts.t5(),
        text_encoder_4=encoders.llama(vocabulary=256 + len(LLAMA_3_MARKS)),
        tokenizer_4=texts.byte_level(
            LLAMA_3_MARKS, begin=("<|begin_of_text|>",), bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
        ),
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[32, 16],
            text_emb_dim=64,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(128, 128),
            llama_layers=(0, 1),
        ),
    )


@model("kandinsky-3", "Kandinsky3Pipeline", steps=25, guidance=3.0, precision="float16", gigabytes=24)
def kandinsky_3() -> Any:
    from census.builders.kandinsky import movq

    return diffusers.Kandinsky3Pipeline(
        tokenizer=texts.t5(128),
        text_encoder=encoders.t5(),
        unet=diffusers.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(32, 64),
            cross_attention_dim=4,
            encoder_hid_dim=32,
        ),
        scheduler=noise("DDPMScheduler"),
        movq=movq(),
    )


@model("bria-3.2", "BriaPipeline", steps=30, guidance=5.0, gigabytes=18)
def bria() -> Any:
    return diffusers.BriaPipeline(
        transformer=diffusers.BriaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoders.kl(shift_factor=0.0, scaling_factor=0.13025),
        text_encoder=encoders.t5(),
        tokenizer=texts.t5(128),
    )


@model("prx-pixel", "PRXPixelPipeline", steps=28, guidance=5.0)
def prx_pixel() -> Any:
    return diffusers.PRXPixelPipeline(
        transformer=diffusers.PRXTransformer2DModel(
            patch_size=16,
            in_channels=3,
            context_in_dim=16,
            hidden_size=16,
            mlp_ratio=2.0,
            num_heads=2,
            depth=1,
            axes_dim=[4, 4],
            bottleneck_size=8,
            resolution_embeds=True,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=encoders.qwen3(),
        tokenizer=texts.qwen(),
        prompt_max_tokens=64,
    )


@model("bria-fibo", "BriaFiboPipeline", steps=50, guidance=5.0, gigabytes=23)
def bria_fibo() -> Any:
    smol = transformers.SmolLM3Config(
        vocab_size=128001,  # the pipeline has the number of an empty prompt's token in its code
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=256,
        eos_token_id=258,
        bos_token_id=257,
    )
    return diffusers.BriaFiboPipeline(
        transformer=diffusers.BriaFiboTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            text_encoder_dim=8,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoders.qwen(
            16,
            "AutoencoderKLWan",
            decoder_base_dim=8,
            out_channels=12,
            in_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            dim_mult=[1, 2, 2, 2],
            temperal_downsample=[False, True, True],
            is_residual=True,
        ),
        text_encoder=transformers.SmolLM3ForCausalLM(smol),
        tokenizer=texts.qwen(),
    )
