"""The tokenizer and the text encoder, in the form that diffusers and transformers load."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import SEED_PROMPT, caption
from .sampler import Sampler
from .subjects import by_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from .data import Sprites
    from .settings import Settings

LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def train_tokenizer(sprites: Sprites, settings: Settings, folder: Path) -> None:
    """Learn a byte-level BPE (Sennrich et al., 2016) from captions; write it as CLIP's `vocab.json` and `merges.txt`.

    Args:
        sprites: The pictures (scenes are drawn to be said).
        settings: The configuration.
        folder: Where to write.
    """
    rng = Random(settings.seed)  # noqa: S311 - captions, no secrets
    sampler = Sampler(sprites, rng)
    texts = [caption(sampler.training(), rng) for _ in range(20_000)] + [name for name in by_name() for _ in range(60)]
    bpe = Tokenizer(models.BPE(unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=settings.tokenizer.vocabulary - 256,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        min_frequency=3,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learned: dict[str, Any] = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    # CLIP's order: bytes, bytes that end a word, merges, specials.
    words = [*alphabet, *(c + "</w>" for c in alphabet)]
    words += [w for pair in merges if (w := "".join(pair)) not in set(words)]
    words = [*dict.fromkeys(words), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({w: i for i, w in enumerate(words)}, ensure_ascii=False), encoding="utf-8"
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer from `vocab.json` and `merges.txt`."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(a, b) for a, b in (line.split(" ") for line in lines)]
    kind: Any = CLIPTokenizer
    return kind(
        vocab=vocabulary,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=LENGTH,
    )


def pipeline_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a pipeline folder."""
    kind: Any = CLIPTokenizer
    return kind.from_pretrained(folder / "tokenizer")


def encoder_of(tokenizer: Any) -> Callable[[list[str]], NDArray[np.uint16]]:
    """Return a function from texts to token ids, [n, 77], as the pipeline pads and cuts them."""

    def encode(texts: list[str]) -> NDArray[np.uint16]:
        ids = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np").input_ids
        return np.asarray(ids, np.uint16)

    return encode


def empty_caption(tokenizer: Any, device: torch.device) -> Tensor:
    """Return the token ids of the empty caption, int64 [77]."""
    return torch.tensor(tokenizer("", padding="max_length", max_length=LENGTH).input_ids, device=device)


def new_text_encoder(settings: Settings, tokenizer: Any) -> Any:
    """Return an untrained CLIP text encoder (Radford et al., 2021), only small."""
    shape = settings.diffusion
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.text_width,
        intermediate_size=shape.text_inner,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_width // 32,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        projection_dim=shape.text_width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


__all__ = [
    "LENGTH",
    "SEED_PROMPT",
    "encoder_of",
    "load_tokenizer",
    "new_text_encoder",
    "pipeline_tokenizer",
    "train_tokenizer",
]
