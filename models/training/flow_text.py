"""The text encoders of the flow-matching model: a small T5, which it attends to, and a small CLIP, for a summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

if TYPE_CHECKING:
    from .settings import Settings


def new_t5(settings: Settings, tokenizer: Any) -> Any:
    """Return an untrained T5 encoder (Raffel et al., 2020), only small; no dropout."""
    shape = settings.flow
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=shape.text_width,
        d_kv=32,
        d_ff=shape.text_inner,
        num_layers=shape.text_layers,
        num_heads=shape.text_width // 32,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        initializer_factor=0.3,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)


def new_clip(settings: Settings, tokenizer: Any) -> Any:
    """Return an untrained CLIP text encoder, of which the pipeline uses the pooled output."""
    shape = settings.flow
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.pooled_width,
        intermediate_size=shape.pooled_inner,
        num_hidden_layers=shape.pooled_layers,
        num_attention_heads=shape.pooled_width // 32,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=shape.pooled_width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
