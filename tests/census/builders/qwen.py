"""Pipelines whose text encoder is a Qwen: Qwen-Image, Z-Image, Krea 2 and others."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from census import autoencoders, encoders, texts
from census.builders.flux import shifted
from census.registry import model


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
        axes_lens=[1024, 512, 512],
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


@model("z-image", "ZImagePipeline", steps=50, guidance=4.0, gigabytes=21)
def z_image() -> Any:
    return diffusers.ZImagePipeline(**z_parts(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0)))


@model("ovis-image", "OvisImagePipeline", steps=50, guidance=5.0, gigabytes=19)
def ovis_image() -> Any:
    return diffusers.OvisImagePipeline(
        scheduler=shifted(),
        vae=autoencoders.flow(),
        text_encoder=encoders.qwen3(),
        tokenizer=texts.qwen(),
        transformer=diffusers.OvisImageTransformer2DModel(
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )


@model("longcat-image", "LongCatImagePipeline", steps=50, guidance=4.5, gigabytes=28)
def longcat_image() -> Any:
    from census.builders.kandinsky import qwen_vl_processor

    # It rewrites prompts, which ends soon where half of all tokens are ends.
    text_encoder = encoders.qwen25_vl()
    text_encoder.generation_config.eos_token_id = list(range(0, texts.BYTES_VOCABULARY, 2))
    text_encoder.generation_config.pad_token_id = 256
    return diffusers.LongCatImagePipeline(
        scheduler=shifted(),
        vae=autoencoders.flow(16),
        text_encoder=text_encoder,
        tokenizer=texts.qwen(),
        text_processor=qwen_vl_processor(),
        transformer=diffusers.LongCatImageTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 6, 6],
        ),
    )


def qwen3_vl_processor() -> Any:
    """The processor of Qwen 3 VL."""
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=16),
        tokenizer=texts.qwen(),
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=texts.CHAT,
    )


@model("qwen-image-2.1", "QwenImage21Pipeline", steps=50, guidance=4.0)
def qwen_image_21() -> Any:
    return diffusers.QwenImage21Pipeline(
        scheduler=scheduler(),
        vae=autoencoders.qwen(
            4,
            "AutoencoderKLQwenImage21",
            decoder_base_dim=8,
            dim_mult=[1, 2, 2, 2, 2],
            temperal_downsample=[False, True, True, True],
        ),
        text_encoder=encoders.qwen3_vl("Qwen3VLForConditionalGeneration"),
        processor=qwen3_vl_processor(),
        transformer=diffusers.QwenImage21Transformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )


@model("hunyuan-image-2.1", "HunyuanImagePipeline", steps=50, guidance=3.25, gigabytes=52)
def hunyuan_image() -> Any:
    return diffusers.HunyuanImagePipeline(**hunyuan_parts(False))


@model("hunyuan-image-2.1-distilled", "HunyuanImagePipeline", steps=8, guidance=3.25, gigabytes=52)
def hunyuan_image_distilled() -> Any:
    return diffusers.HunyuanImagePipeline(**hunyuan_parts(True))


def hunyuan_parts(distilled: bool) -> dict[str, Any]:
    """Components of HunyuanImage 2.1, whose guidance is a component."""
    guider = None if distilled else diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2)
    ocr = None if distilled else diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3)
    glyphs = transformers.T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        "vae": diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            scaling_factor=0.75289,
            spatial_compression_ratio=2,
            sample_size=128,
        ),
        "text_encoder": encoders.qwen25_vl(layers=3),
        "tokenizer": texts.qwen(),
        "text_encoder_2": transformers.T5EncoderModel(glyphs),
        "tokenizer_2": transformers.ByT5Tokenizer(),
        "transformer": diffusers.HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            guidance_embeds=distilled,
            text_embed_dim=16,
            text_embed_2_dim=32,
            rope_axes_dim=(4, 4),
            use_meanflow=distilled,
        ),
        "guider": guider,
        "ocr_guider": ocr,
    }


@model("nucleus-moe-image", "NucleusMoEImagePipeline", steps=50, guidance=4.0)
def nucleus_moe() -> Any:
    return diffusers.NucleusMoEImagePipeline(
        transformer=diffusers.NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
            moe_enabled=False,
            capacity_factors=[8.0, 8.0],
        ),
        scheduler=scheduler(),
        vae=autoencoders.qwen(),
        text_encoder=encoders.qwen3_vl("Qwen3VLForConditionalGeneration", layers=8),
        processor=qwen3_vl_processor(),
    )


@model("ernie-image", "ErnieImagePipeline", steps=50, guidance=4.0, gigabytes=22)
def ernie_image() -> Any:
    from census.builders.flux import MISTRAL_MARKS, mistral

    return diffusers.ErnieImagePipeline(
        transformer=diffusers.ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=64,
            in_channels=16,
            out_channels=16,
            text_in_dim=16,
            rope_axes_dim=(8, 4, 4),
        ),
        vae=autoencoders.flux2(),
        text_encoder=mistral("Mistral3Model", layers=3),
        tokenizer=texts.byte_level(MISTRAL_MARKS, bos_token="<s>", eos_token="</s>", pad_token="<pad>"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


@model("ernie-image-with-enhancer", "ErnieImagePipeline", steps=50, guidance=4.0, gigabytes=29)
def ernie_image_with_enhancer() -> Any:
    from census.builders.flux import MISTRAL_CHAT, MISTRAL_MARKS

    # The language model that rewrites prompts samples from the global generator.
    pipeline = ernie_image()
    config = transformers.Ministral3Config(
        vocab_size=256 + len(MISTRAL_MARKS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        bos_token_id=257,
        eos_token_id=258,
        pad_token_id=264,
    )
    tokenizer = texts.byte_level(
        MISTRAL_MARKS, MISTRAL_CHAT, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=64
    )
    pipeline.register_modules(pe=transformers.Ministral3ForCausalLM(config), pe_tokenizer=tokenizer)
    return pipeline


def ideogram_transformer() -> Any:
    return diffusers.Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=32,
        adaln_dim=16,
        llm_features_dim=13 * 16,
        mrope_section=(4, 2, 2),
    )


@model("ideogram-4", "Ideogram4Pipeline", steps=48, guidance=7.0)
def ideogram_4() -> Any:
    return diffusers.Ideogram4Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoders.flux2(),
        text_encoder=encoders.qwen3_vl(layers=36),
        tokenizer=texts.qwen(),
        transformer=ideogram_transformer(),
        unconditional_transformer=ideogram_transformer(),
    )
