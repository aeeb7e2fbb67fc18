"""Tiny text encoders, each with the vocabulary of its tokenizer in :mod:`census.texts`."""

from __future__ import annotations

from typing import Any

import transformers

from census import texts


def clip(kind: str = "CLIPTextModel", width: int = 32, **more: Any) -> Any:
    """CLIP's text model, by default without a projection."""
    return getattr(transformers, kind)(clip_config(width, **more))


def clip_config(width: int = 32, **more: Any) -> Any:
    """What a tiny CLIP text model is made of."""
    options: dict[str, Any] = {
        "vocab_size": texts.CLIP_VOCABULARY,
        "bos_token_id": texts.CLIP_VOCABULARY - 2,
        "eos_token_id": texts.CLIP_VOCABULARY - 1,
        "pad_token_id": texts.CLIP_VOCABULARY - 1,
        "hidden_size": width,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": texts.CLIP_TOKENS,
        "projection_dim": 32,
        "hidden_act": "gelu",
    }
    return transformers.CLIPTextConfig(**(options | more))


def t5(width: int = 32, kind: str = "T5EncoderModel", **more: Any) -> Any:
    """T5's encoder."""
    options: dict[str, Any] = {
        "vocab_size": texts.T5_VOCABULARY,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 37,
        "num_heads": 4,
    }
    options |= {"num_layers": 2, "feed_forward_proj": "gated-gelu"}
    config = transformers.UMT5Config if kind.startswith("UMT5") else transformers.T5Config
    return getattr(transformers, kind)(config(**(options | more)))


def _decoder(width: int, layers: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    options = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
    }
    return options | more


def qwen3(kind: str = "Qwen3Model", width: int = 16, layers: int = 2, **more: Any) -> Any:
    """Qwen 3's text model."""
    config = transformers.Qwen3Config(**_decoder(width, layers, texts.BYTES_VOCABULARY, **more))
    return getattr(transformers, kind)(config)


def qwen2(kind: str = "Qwen2ForCausalLM", width: int = 16, layers: int = 2, **more: Any) -> Any:
    """Qwen 2's text model."""
    config = transformers.Qwen2Config(**_decoder(width, layers, texts.BYTES_VOCABULARY, **more))
    return getattr(transformers, kind)(config)


def _marks() -> dict[str, Any]:
    return {
        "image_token_id": texts.mark("<|image_pad|>"),
        "video_token_id": texts.mark("<|video_pad|>"),
        "vision_start_token_id": texts.mark("<|vision_start|>"),
        "vision_end_token_id": texts.mark("<|vision_end|>"),
    }


def qwen25_vl(kind: str = "Qwen2_5_VLForConditionalGeneration", width: int = 16, layers: int = 2) -> Any:
    """Qwen 2.5 VL."""
    text = _decoder(width, layers, texts.BYTES_VOCABULARY)
    del text["head_dim"]  # it divides its width by its heads
    sections = width // 2 // 2
    text["rope_parameters"] = {
        "mrope_section": [sections - 2 * (sections // 3), sections // 3, sections // 3],
        "rope_type": "default",
        "rope_theta": 1e6,
    }
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
    }
    vision |= {"fullatt_block_indexes": [0]}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_marks())
    return getattr(transformers, kind)(config)


def qwen3_vl(kind: str = "Qwen3VLModel", width: int = 16, layers: int = 2) -> Any:
    """Qwen 3 VL."""
    text = _decoder(width, layers, texts.BYTES_VOCABULARY)
    text["rope_parameters"] = {"mrope_section": [2, 1, 1], "rope_type": "default", "rope_theta": 1e6}
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
    }
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **_marks())
    return getattr(transformers, kind)(config)


def gemma2(width: int = 16, layers: int = 2) -> Any:
    """Gemma 2's text model."""
    config = transformers.Gemma2Config(
        **_decoder(width, layers, texts.GEMMA_VOCABULARY, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    )
    return transformers.Gemma2Model(config)


def gemma(kind: str = "GemmaModel", width: int = 16, layers: int = 2) -> Any:
    """Gemma's text model."""
    config = transformers.GemmaConfig(
        **_decoder(width, layers, texts.GEMMA_VOCABULARY, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    )
    return getattr(transformers, kind)(config)


def llama(kind: str = "LlamaForCausalLM", width: int = 16, layers: int = 2, vocabulary: int = 0, **more: Any) -> Any:
    """Llama's text model."""
    config = transformers.LlamaConfig(**_decoder(width, layers, vocabulary or texts.LLAMA_VOCABULARY, **more))
    return getattr(transformers, kind)(config)
