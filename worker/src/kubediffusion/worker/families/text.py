"""Prompts that are not all as long: how many tokens they have, and how their encodings share a batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import torch

_TEXTS = 1024
"""Number of texts whose token count is cached."""


class TokenCounts:
    """Counts the tokens of texts, from any thread, each text once while it is in use.

    Args:
        count: Counts a text's tokens, with a tokenizer of its own: a tokenizer is for one thread at a time.
    """

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._lock = Lock()
        # Least recently used first.
        self._known: OrderedDict[str, int] = OrderedDict()

    def of(self, text: str) -> int:
        """Count the tokens of a text."""
        with self._lock:
            if text not in self._known:
                while len(self._known) >= _TEXTS:
                    self._known.popitem(last=False)
                self._known[text] = self._count(text)
            self._known.move_to_end(text)
            return self._known[text]


def bucket(tokens: int, step: int, most: int) -> int:
    """Round tokens up to a multiple of ``step``, of at most ``most``: prompts of like length then share steps."""
    return min(-(-max(tokens, 1) // step) * step, most)


def padded(encoding: torch.Tensor, length: int) -> torch.Tensor:
    """Pad an encoding, ``[1, tokens, ...]``, with zeros to ``[1, length, ...]``."""
    missing = length - encoding.shape[1]
    if missing <= 0:
        return encoding[:, :length]
    return torch.cat([encoding, encoding.new_zeros(1, missing, *encoding.shape[2:])], dim=1)


def present(tokens: int, length: int, device: torch.device) -> torch.Tensor:
    """Return the attention mask of ``tokens`` tokens, padded to ``length``: ``[1, length]``, bool."""
    return torch.arange(length, device=device)[None] < tokens
