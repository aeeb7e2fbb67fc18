"""FLUX.1 and FLUX.2, and Chroma, which stands on FLUX.1."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from census import autoencoders, encoders, texts
from census.registry import model


def shifted(**more: Any) -> Any:
    """The scheduler of FLUX.1-dev, whose shift grows with the image."""
    options = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
    return diffusers.FlowMatchEulerDiscreteScheduler(**({"shift": 3.0, "use_dynamic_shifting": True} | options | more))


def transformer(**more: Any) -> Any:
    options = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    }
    return diffusers.FluxTransformer2DModel(**(options | more))


def parts(**more: Any) -> dict[str, Any]:
    """Components of FLUX.1."""
    components = {
        "scheduler": shifted(),
        "vae": autoencoders.flow(),
        "text_encoder": encoders.clip(),
        "tokenizer": texts.clip(),
        "text_encoder_2": encoders.t5(),
        "tokenizer_2": texts.t5(),
        "transformer": transformer(),
    }
    return components | more


@model("flux-dev", "FluxPipeline", steps=28, guidance=3.5, gigabytes=34)
def flux_dev() -> Any:
    return diffusers.FluxPipeline(**parts())


@model("flux-schnell", "FluxPipeline", steps=4, guidance=0.0, gigabytes=34)
def flux_schnell() -> Any:
    plain = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    return diffusers.FluxPipeline(**parts(scheduler=plain, transformer=transformer(guidance_embeds=False)))


@model("flux-kontext", "FluxKontextPipeline", sizes=((1024, 1024), (1248, 832)), steps=28, guidance=2.5, gigabytes=34)
def flux_kontext() -> Any:
    # Whatever it is asked for, its images have a million pixels: few latents.
    return diffusers.FluxKontextPipeline(**parts(vae=autoencoders.flow(blocks=6)))


def transformer_2(**more: Any) -> Any:
    options = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 3 * 16,
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    return diffusers.Flux2Transformer2DModel(**(options | more))


MISTRAL_MARKS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<pad>")
MISTRAL_CHAT = (
    "{% for message in messages %}[INST]{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}[IMG]{% endif %}"
    "{% endfor %}{% endif %}[/INST]{% endfor %}"
)


def mistral_processor() -> Any:
    """The processor of Mistral Small 3, which takes images before texts."""
    tokenizer = texts.byte_level(
        MISTRAL_MARKS, MISTRAL_CHAT, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    return transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(patch_size=6, size={"longest_edge": 30}),
        tokenizer=tokenizer,
        patch_size=6,
        chat_template=MISTRAL_CHAT,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
    )


def mistral(kind: str = "Mistral3ForConditionalGeneration", layers: int = 31) -> Any:
    """Mistral Small 3, deep enough for the layers that FLUX.2 reads."""
    text = {
        "model_type": "mistral",
        "vocab_size": 256 + len(MISTRAL_MARKS),
        "hidden_size": 16,
        "intermediate_size": 16,
        "max_position_embeddings": 2048,
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": None,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "pad_token_id": 264,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 16,
        "image_size": 30,
        "patch_size": 6,
        "num_channels": 3,
    }
    config = transformers.Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=261, vision_feature_layer=-1
    )
    return getattr(transformers, kind)(config)


@model("flux-2", "Flux2Pipeline", steps=50, guidance=4.0, gigabytes=112)
def flux_2() -> Any:
    return diffusers.Flux2Pipeline(
        scheduler=shifted(),
        vae=autoencoders.flux2(),
        text_encoder=mistral(),
        tokenizer=mistral_processor(),
        transformer=transformer_2(),
    )


def parts_klein() -> dict[str, Any]:
    """Components of FLUX.2 klein, which reads Qwen 3's layers down to its 27th."""
    return {
        "scheduler": shifted(),
        "vae": autoencoders.flux2(),
        "text_encoder": encoders.qwen3("Qwen3ForCausalLM", layers=28, intermediate_size=16),
        "tokenizer": texts.qwen(),
        "transformer": transformer_2(guidance_embeds=False),
    }


@model("flux-2-klein", "Flux2KleinPipeline", steps=4, guidance=1.0, gigabytes=16)
def flux_2_klein() -> Any:
    return diffusers.Flux2KleinPipeline(**parts_klein(), is_distilled=True)


@model("flux-2-klein-base", "Flux2KleinPipeline", steps=50, guidance=4.0, gigabytes=16)
def flux_2_klein_base() -> Any:
    return diffusers.Flux2KleinPipeline(**parts_klein())


@model("flux-2-klein-kv", "Flux2KleinKVPipeline", steps=4, guidance=1.0)
def flux_2_klein_kv() -> Any:
    return diffusers.Flux2KleinKVPipeline(**parts_klein(), is_distilled=True)


@model("chroma", "ChromaPipeline", steps=35, guidance=5.0, gigabytes=27)
def chroma() -> Any:
    return diffusers.ChromaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoders.flow(),
        text_encoder=encoders.t5(),
        tokenizer=texts.t5(),
        transformer=diffusers.ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
    )
