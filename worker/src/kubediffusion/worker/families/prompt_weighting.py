"""Weights in prompts, and prompts longer than a CLIP text encoder: both only where a job asks for ``promptWeighting``.

The syntax is AUTOMATIC1111's, in which people write prompts: ``(word:1.3)`` weighs by 1.3, ``(word)`` by 1.1 and
``[word]`` by 1 / 1.1; brackets nest, and a backslash before one makes it a character. So are the two computations
(https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis):

- a token's encoding is multiplied by its weight, and the whole then brought back to the mean that it had;
- tokens are encoded in chunks of what the encoder takes, each with marks of start and end, one after another.

A prompt of one chunk without weights is encoded as without the option, by the same code: its image is the same, bit by
bit. docs/adr/0017-our-own-code-beside-libraries.md says why this is no library's.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch

from kubediffusion.worker.engine import ImageRequest
from kubediffusion.worker.families.text import LruCache
from kubediffusion.worker.transfers import to_device

MOST_CHUNKS = 8
"""Chunks of a prompt that are used: each number of them is a batch of its own, prepared by itself."""

MOST_WEIGHT = 10.0
"""The largest weight: with far smaller ones there is nothing left to see."""

_BRACKET = 1.1
"""The weight of a pair of round brackets without a number."""

_PARSED = 1024
"""Texts whose tokens are kept."""

_SYNTAX = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|:")


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Return the parts of a prompt, each with its weight; neighbours of one weight are one part.

    A bracket that is not closed reaches to the end; one that was not opened is a character.
    """
    parts: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []

    def close(weight: float) -> None:
        _, first = opened.pop()
        parts[first:] = [(part, weight * own) for part, own in parts[first:]]

    for found in _SYNTAX.finditer(text):
        sign, number = found[0], found[1]
        if sign in {"(", "["}:
            opened.append((sign, len(parts)))
        elif number is not None and opened and opened[-1][0] == "(":
            close(float(number))
        elif sign == ")" and opened and opened[-1][0] == "(":
            close(_BRACKET)
        elif sign == "]" and opened and opened[-1][0] == "[":
            close(1 / _BRACKET)
        else:
            parts.append((sign[1:] if len(sign) > 1 and sign[0] == "\\" else sign, 1.0))
    while opened:
        close(_BRACKET if opened[-1][0] == "(" else 1 / _BRACKET)
    joined: list[tuple[str, float]] = []
    for part, weight in parts:
        bounded = max(-MOST_WEIGHT, min(weight, MOST_WEIGHT))
        if joined and joined[-1][1] == bounded:
            joined[-1] = (joined[-1][0] + part, bounded)
        else:
            joined.append((part, bounded))
    return joined


@dataclass(frozen=True)
class WeightedTokens:
    """A prompt as tokens, without marks of start and end.

    Attributes:
        text: The prompt without its syntax.
        tokens: Ids.
        weights: Of each token; empty where all are 1.
        room: Tokens of a chunk.
    """

    text: str
    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    room: int

    @property
    def chunks(self) -> int:
        """Chunks that it takes: one at least, :data:`MOST_CHUNKS` at most."""
        return min(max(-(-len(self.tokens) // self.room), 1), MOST_CHUNKS)

    @property
    def cut(self) -> int:
        """Tokens that are left out."""
        return max(len(self.tokens) - MOST_CHUNKS * self.room, 0)

    def chunk(self, number: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return ids and weights of a chunk; one beyond the prompt's end is empty."""
        place = slice(number * self.room, (number + 1) * self.room)
        return self.tokens[place], self.weights[place]


class PromptWeighting:
    """Tokens of prompts with weights, for one CLIP tokenizer.

    Args:
        pipeline: The pipeline, which knows the words that were added to the tokenizer.
        tokenizer: The tokenizer.
    """

    def __init__(self, pipeline: Any, tokenizer: Any) -> None:
        self._pipeline = pipeline
        # A copy: a tokenizer is for one thread at a time, and keys are asked for from any.
        self._tokenizer = copy.deepcopy(tokenizer)
        self.length = int(tokenizer.model_max_length)
        self._known: LruCache[str, WeightedTokens] = LruCache(_PARSED)

    def tokens(self, text: str) -> WeightedTokens:
        """Return the tokens of a prompt with their weights; those of the prompts that came last are kept."""
        return self._known.get(text, lambda: self._tokens(text))

    def _tokens(self, text: str) -> WeightedTokens:
        parts = parse_weights(text)
        plain = "".join(part for part, _ in parts)
        room = self.length - 2
        if all(weight == 1 for _, weight in parts):
            # As a whole: a bracket may divide a word.
            return WeightedTokens(plain, tuple(self._ids(plain)), (), room)
        tokens: list[int] = []
        weights: list[float] = []
        for part, weight in parts:
            ids = self._ids(part)
            tokens += ids
            weights += [weight] * len(ids)
        return WeightedTokens(plain, tuple(tokens), tuple(weights), room)

    def _ids(self, text: str) -> list[int]:
        converted = self._pipeline.maybe_convert_prompt(text, self._tokenizer)
        ids: list[int] = self._tokenizer(converted, add_special_tokens=False, truncation=False, verbose=False).input_ids
        return ids

    def chunks(self, request: ImageRequest, *, guided: bool) -> int:
        """Return how many chunks each of an image's prompts takes: as many as the longer."""
        texts = [request.prompt, request.negative_prompt or ""][: 1 + guided]
        return max(self.tokens(text).chunks for text in texts)

    def cut_warnings(self, request: ImageRequest) -> list[str]:
        """Return a warning for each of an image's prompts that is longer than all chunks."""
        texts = (("prompt", request.prompt), ("negativePrompt", request.negative_prompt))
        return [
            f"{field} is too long: the last {cut} tokens were cut, promptWeighting takes "
            f"{MOST_CHUNKS * (self.length - 2)}"
            for field, text in texts
            if text and (cut := self.tokens(text).cut)
        ]


def marked(tokens: tuple[int, ...], tokenizer: Any, device: torch.device) -> torch.Tensor:
    """Return a chunk as the encoder takes it: ``[1, length]``, with marks of start and end, padded."""
    ids = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id]
    ids += [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))
    return to_device(torch.tensor([ids]), device)


def weighted(encoding: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """Weigh the encoding of a chunk, ``[1, length, channels]``, and bring it back to its mean.

    Args:
        encoding: Of start, tokens, end and padding.
        weights: Of the tokens; what they do not reach has the weight 1.
    """
    if all(weight == 1 for weight in weights):
        return encoding
    scales = torch.ones(encoding.shape[1])
    scales[1 : 1 + len(weights)] = torch.tensor(weights)
    wide = encoding.float()
    scaled = wide * to_device(scales, encoding.device)[None, :, None]
    return (scaled * (wide.mean() / scaled.mean())).to(encoding.dtype)
