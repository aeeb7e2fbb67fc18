"""Saves tiny pipelines for tests: real architectures with seeded weights and a tokenizer of their own, no network.

They produce noise in a few milliseconds a step, through the code that runs the large ones.
"""

from __future__ import annotations

import importlib
import string
from pathlib import Path
from typing import Any

SIZE = 64
"""Default width and height of the tiny pipelines, in pixels."""

MAX_TOKENS = 16
"""Tokens that their text encoder takes, start and end included; a word has one token for each of its letters."""


def save_stable_diffusion(folder: Path, *, safety_checker: bool = False) -> Path:
    """Save a tiny StableDiffusionPipeline in a folder, and return the folder."""
    _library("torch").manual_seed(0)
    pipeline = _library("diffusers").StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=clip_tokenizer(),
        unet=_unet(),
        scheduler=_library("diffusers").PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=_safety_checker() if safety_checker else None,
        feature_extractor=_feature_extractor() if safety_checker else None,
        requires_safety_checker=safety_checker,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_latent_consistency(folder: Path) -> Path:
    """Save a tiny LatentConsistencyModelPipeline, whose denoiser is told the guidance scale, and return its folder."""
    _library("torch").manual_seed(0)
    pipeline = _library("diffusers").LatentConsistencyModelPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=clip_tokenizer(),
        unet=_unet(time_cond_proj_dim=16),
        scheduler=_library("diffusers").LCMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_stable_diffusion_xl(folder: Path) -> Path:
    """Save a tiny StableDiffusionXLPipeline with two text encoders in a folder, and return the folder."""
    _library("torch").manual_seed(0)
    width = 32
    pipeline = _library("diffusers").StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_library("transformers").CLIPTextModelWithProjection(clip_config()),
        tokenizer_2=clip_tokenizer(),
        unet=_unet(
            cross_attention_dim=2 * width,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + width,
        ),
        scheduler=_library("diffusers").EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_flux(folder: Path) -> Path:
    """Save a tiny FluxPipeline (transformer, flow matching, no classifier-free guidance) in a folder, and return it."""
    _library("torch").manual_seed(0)
    width = 32
    pipeline = _library("diffusers").FluxPipeline(
        scheduler=_library("diffusers").FlowMatchEulerDiscreteScheduler(),
        vae=_library("diffusers").AutoencoderKL(
            block_out_channels=(8,),
            norm_num_groups=4,
            latent_channels=1,
            sample_size=32,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.0609,
            scaling_factor=1.5035,
        ),
        text_encoder=_clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_library("transformers").T5EncoderModel(
            _library("transformers").T5Config(
                vocab_size=VOCABULARY, d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4
            )
        ),
        tokenizer_2=t5_tokenizer(),
        transformer=_library("diffusers").FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=width,
            pooled_projection_dim=width,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _library(name: str) -> Any:
    """Import a library late and as Any: its types are missing or wrong."""
    return importlib.import_module(name)


_MARKS = ("<|startoftext|>", "<|endoftext|>")
_LETTERS = string.ascii_lowercase + string.digits + string.punctuation
VOCABULARY = 2 * len(_LETTERS) + len(_MARKS)
"""Tokens of the tokenizers."""


def clip_tokenizer() -> Any:
    """Make a CLIP tokenizer: each letter is a token, and so is each letter at the end of a word; nothing is merged."""
    words = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), *_MARKS]
    vocabulary = {word: number for number, word in enumerate(words)}
    return _library("transformers").CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_TOKENS)


def t5_tokenizer() -> Any:
    """Make a tokenizer of the same tokens that has no limit of length."""
    return _library("transformers").PreTrainedTokenizerFast(
        tokenizer_object=clip_tokenizer().backend_tokenizer,
        pad_token=_MARKS[1],
        eos_token=_MARKS[1],
        unk_token=_MARKS[1],
    )


def clip_config() -> Any:
    """Configure a CLIP text encoder of two layers."""
    return _library("transformers").CLIPTextConfig(
        vocab_size=VOCABULARY,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=32,
        hidden_act="gelu",
    )


def _clip() -> Any:
    return _library("transformers").CLIPTextModel(clip_config())


def _vae() -> Any:
    return _library("diffusers").AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=SIZE,
    )


def _unet(cross_attention_dim: int = 32, **options: Any) -> Any:
    return _library("diffusers").UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=SIZE // 2,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=cross_attention_dim,
        **options,
    )


def _safety_checker() -> Any:
    vision = _library("transformers").CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    config = _library("transformers").CLIPConfig(
        text_config=clip_config().to_dict(), vision_config=vision.to_dict(), projection_dim=16
    )
    return _library("diffusers.pipelines.stable_diffusion.safety_checker").StableDiffusionSafetyChecker(config)


def _feature_extractor() -> Any:
    return _library("transformers").CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
