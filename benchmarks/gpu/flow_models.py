"""Flow-matching models of the true shapes with random weights, made on the device: nothing is read from a disk.

Speed does not depend on what the weights know. The shapes are those of the published configurations. Tokenizers are the
tests' own, with a token for each letter or byte: a prompt's length is what matters.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

# First: its builders import each other.
import census.registry  # noqa: F401

PROMPT = "an astronaut riding a green horse through deep snow at night, the northern lights above"


@dataclass(frozen=True)
class Architecture:
    """One model to measure.

    Attributes:
        build: Makes its pipeline, on the device.
        steps: Denoising steps that it is measured with.
        guidance: Its guidance scale.
        negative: The negative prompt, where guidance needs one.
    """

    build: Callable[[], Any]
    steps: int
    guidance: float
    negative: str | None = None


def flux1() -> Any:
    """Make FLUX.1-dev: 11.9 B parameters, T5-XXL of 4.8 B."""
    import diffusers

    with _on_device():
        transformer = diffusers.FluxTransformer2DModel(guidance_embeds=True)
        vae = _vae()
        clip, t5 = _clip(), _t5()
    return diffusers.FluxPipeline(
        scheduler=_shifted(),
        vae=vae,
        text_encoder=clip,
        tokenizer=_texts().clip(),
        text_encoder_2=t5,
        tokenizer_2=_texts().t5(),
        transformer=transformer,
    )


def qwen() -> Any:
    """Make Qwen-Image: 20.4 B parameters, Qwen2.5-VL of 8.3 B."""
    import diffusers
    import transformers

    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_parameters": {"mrope_section": [16, 24, 24], "rope_type": "default", "rope_theta": 1e6},
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    with _on_device():
        transformer = diffusers.QwenImageTransformer2DModel()
        vae = diffusers.AutoencoderKLQwenImage()
        encoder = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        )
    return diffusers.QwenImagePipeline(
        scheduler=_shifted(max_image_seq_len=8192, max_shift=0.9, shift=1.0, shift_terminal=0.02),
        vae=vae,
        text_encoder=encoder,
        tokenizer=_texts().qwen(),
        transformer=transformer,
    )


def zimage() -> Any:
    """Make Z-Image-Turbo: 6.2 B parameters, Qwen3 of 4.0 B."""
    import diffusers

    with _on_device():
        transformer = diffusers.ZImageTransformer2DModel()
        vae = _vae(scaling_factor=0.3611, shift_factor=0.1159)
        encoder = _qwen3("Qwen3Model")
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=encoder,
        tokenizer=_texts().qwen(),
        transformer=transformer,
    )


def klein() -> Any:
    """Make FLUX.2 klein 4B: 3.9 B parameters, Qwen3 of 4.0 B."""
    import diffusers

    with _on_device():
        transformer = diffusers.Flux2Transformer2DModel(
            num_layers=5,
            num_single_layers=20,
            num_attention_heads=24,
            joint_attention_dim=7680,
            guidance_embeds=False,
        )
        vae = diffusers.AutoencoderKLFlux2()
        encoder = _qwen3("Qwen3ForCausalLM")
    return diffusers.Flux2KleinPipeline(
        scheduler=_shifted(),
        vae=vae,
        text_encoder=encoder,
        tokenizer=_texts().qwen(),
        transformer=transformer,
        is_distilled=True,
    )


def flux2() -> Any:
    """Make FLUX.2-dev: 32.2 B parameters, Mistral Small 3 of 24 B without its images' half."""
    import diffusers
    import transformers

    from census.builders.flux import mistral_processor

    text = {
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": None,
    }
    vision = {"model_type": "pixtral", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.Mistral3Config(text_config=text, vision_config=vision)
    with _on_device():
        transformer = diffusers.Flux2Transformer2DModel()
        vae = diffusers.AutoencoderKLFlux2()
        encoder = transformers.Mistral3ForConditionalGeneration(config)
    return diffusers.Flux2Pipeline(
        scheduler=_shifted(), vae=vae, text_encoder=encoder, tokenizer=mistral_processor(), transformer=transformer
    )


def tiny_flux() -> Any:
    """Make a tiny FLUX.1, for trying the measurements on a CPU."""
    from census.builders import flux

    return flux.flux_dev()


ARCHITECTURES = {
    "flux1": Architecture(flux1, 28, 3.5),
    "qwen": Architecture(qwen, 50, 4.0, " "),
    "zimage": Architecture(zimage, 9, 0.0),
    "klein": Architecture(klein, 4, 1.0),
    "flux2": Architecture(flux2, 50, 4.0),
    "tiny-flux": Architecture(tiny_flux, 4, 3.5),
}


@contextlib.contextmanager
def _on_device() -> Iterator[None]:
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            yield
    finally:
        torch.set_default_dtype(usual)


def _texts() -> Any:
    from census import texts

    return texts


def _shifted(**more: Any) -> Any:
    from census.builders.flux import shifted

    return shifted(**more)


def _vae(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    options: dict[str, Any] = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **(options | more),
    )


def _clip() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    marks = _texts().CLIP_VOCABULARY
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=marks - 2,
            eos_token_id=marks - 1,
            pad_token_id=marks - 1,
        )
    )


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        )
    )


def _qwen3(kind: str) -> Any:
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
    )
    return getattr(transformers, kind)(config)
