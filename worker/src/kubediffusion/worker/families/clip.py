"""Texts as a CLIP text encoder sees them, each encoded once while it is in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kubediffusion.worker.families.base import GraphFactory
from kubediffusion.worker.families.text import LruCache
from kubediffusion.worker.transfers import to_device

_KEPT_BYTES = 16 * 2**20
"""Bytes of encodings that are kept, some hundred: the images of a job share theirs, most jobs one negative prompt."""


class TextEncoding:
    """Encodes texts as Stable Diffusion's ``encode_prompt`` does, one at a time, without waiting for the device.

    Args:
        pipeline: The pipeline, on its device.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._graphed: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._known: LruCache[tuple[str, bool], torch.Tensor] = LruCache(_KEPT_BYTES, lambda encoding: encoding.nbytes)

    def use_graphs(self, graphed: GraphFactory) -> None:
        """Have the encoder run from CUDA graphs, where it is on such a device."""
        self._graphed = graphed(_encoded, self._pipeline.text_encoder)

    def of(self, text: str, *, plain: bool = False) -> torch.Tensor:
        """Return a text's encoding: ``[1, tokens, channels]``.

        Args:
            text: The text.
            plain: Compute as written, not by a graph.
        """
        return self._known.get((text, plain), lambda: self._encode(text, plain=plain))

    def of_tokens(self, tokens: torch.Tensor, *, plain: bool = False) -> torch.Tensor:
        """Return the encoding of tokens, ``[1, tokens]``, with their marks and padding: ``[1, tokens, channels]``."""
        encoder = self._pipeline.text_encoder
        if getattr(encoder.config, "use_attention_mask", False):
            tokenizer = self._pipeline.tokenizer
            # Up to the first mark of the end, as the padding may be the same token.
            ends = (tokens == tokenizer.eos_token_id).int().cumsum(dim=1)
            mask = (ends - (tokens == tokenizer.eos_token_id).int()) == 0
            encoding: torch.Tensor = encoder(tokens, attention_mask=mask.int())[0]
            return encoding.to(encoder.dtype)
        # One whose weights stay in main memory, to come when they are needed, is captured by no graph.
        if self._graphed is not None and encoder.device.type == "cuda" and not plain:
            return self._graphed(tokens).to(encoder.dtype)
        return _encoded(encoder, tokens).to(encoder.dtype)

    def _encode(self, text: str, *, plain: bool) -> torch.Tensor:
        device, encoder = self._pipeline.device, self._pipeline.text_encoder
        if getattr(encoder.config, "use_attention_mask", False):
            encoding: torch.Tensor = self._pipeline.encode_prompt([text], device, 1, False)[0]
            return encoding
        tokenizer = self._pipeline.tokenizer
        tokens = to_device(
            tokenizer(
                # Several tokens for a word that was added by textual inversion.
                self._pipeline.maybe_convert_prompt([text], tokenizer),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids,
            device,
        )
        return self.of_tokens(tokens, plain=plain)


def _encoded(encoder: Any, tokens: torch.Tensor) -> torch.Tensor:
    encoding: torch.Tensor = encoder(tokens, attention_mask=None)[0]
    return encoding
