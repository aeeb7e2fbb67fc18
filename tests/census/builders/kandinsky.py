"""Kandinsky 2.1, 2.2 and 5, with their priors."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from census import autoencoders, encoders, texts
from census.builders.stable_diffusion import noise
from census.registry import model


def movq() -> Any:
    """The vector-quantised autoencoder of Kandinsky 2 and 3."""
    return diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def unet(**more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=32,
        cross_attention_dim=32,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        **more,
    )


def vision() -> Any:
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        image_size=32,
        patch_size=16,
        projection_dim=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=1,
    )
    return transformers.CLIPVisionModelWithProjection(config)


def image_processor() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def prior(prefix: str = "") -> dict[str, Any]:
    """Components of a prior, which makes image embeddings of a prompt."""
    components = {
        "prior": diffusers.PriorTransformer(
            num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1
        ),
        "image_encoder": vision(),
        "text_encoder": encoders.clip("CLIPTextModelWithProjection"),
        "tokenizer": texts.clip(),
        "scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
        ),
        "image_processor": image_processor(),
    }
    return {prefix + name: component for name, component in components.items()}


def _multilingual_clip() -> Any:
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    config = MCLIPConfig(
        numDims=32,
        transformerDimensions=32,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=1,
        vocab_size=texts.ROBERTA_VOCABULARY,
        max_position_embeddings=128,
    )
    return MultilingualCLIP(config)


@model("kandinsky-2.1", "KandinskyCombinedPipeline", steps=100, guidance=4.0, precision="float16")
def kandinsky_2_1() -> Any:
    return diffusers.KandinskyCombinedPipeline(
        text_encoder=_multilingual_clip(),
        tokenizer=texts.roberta(),
        unet=unet(addition_embed_type="text_image", encoder_hid_dim_type="text_image_proj"),
        scheduler=noise("DDIMScheduler", clip_sample=False, set_alpha_to_one=False),
        movq=movq(),
        **prior("prior_"),
    )


@model("kandinsky-2.2", "KandinskyV22CombinedPipeline", steps=100, guidance=4.0, precision="float16")
def kandinsky_2_2() -> Any:
    return diffusers.KandinskyV22CombinedPipeline(
        unet=unet(addition_embed_type="image", encoder_hid_dim_type="image_proj"),
        scheduler=noise("DDPMScheduler"),
        movq=movq(),
        **prior("prior_"),
    )


@model("kandinsky-2.1-prior", "KandinskyPriorPipeline", refused="no images")
def kandinsky_2_1_prior() -> Any:
    return diffusers.KandinskyPriorPipeline(**prior())


@model("kandinsky-2.2-prior", "KandinskyV22PriorPipeline", refused="no images")
def kandinsky_2_2_prior() -> Any:
    return diffusers.KandinskyV22PriorPipeline(**prior())


def qwen_vl_processor() -> Any:
    """The processor of Qwen 2 VL, which takes images before texts."""
    return transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=texts.qwen(),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=texts.CHAT,
    )


@model("kandinsky-5", "Kandinsky5T2IPipeline", sizes=((1024, 1024), (640, 1408)), steps=50, guidance=3.5, gigabytes=30)
def kandinsky_5() -> Any:
    # It makes images of a few sizes only, of a million pixels each, by a VAE that is taken to halve them three times.
    vae = autoencoders.flow(
        blocks=4, block_out_channels=(4, 8, 8, 8), norm_num_groups=4, scaling_factor=0.3611, shift_factor=0.1159
    )
    return diffusers.Kandinsky5T2IPipeline(
        vae=vae,
        text_encoder=encoders.qwen25_vl(),
        tokenizer=qwen_vl_processor(),
        text_encoder_2=encoders.clip(),
        tokenizer_2=texts.clip(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=32,
            time_dim=16,
            out_visual_dim=4,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(2, 2, 4),
            visual_cond=False,
            attention_type="regular",
        ),
    )
