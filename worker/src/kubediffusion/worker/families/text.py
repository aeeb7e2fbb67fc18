"""Prompts that are not all as long: how many tokens they have, and how their encodings share a batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

import torch

_TEXTS = 1024
"""Number of texts whose token count is cached."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Keeps what was used last, for any thread.

    ``cachetools.LRUCache`` would save six lines and cost the worker's image a library: docs/adr/0017.

    Args:
        capacity: The most that is kept, in the units of ``size``.
        size: Returns what a value takes; by default 1, so that ``capacity`` is a number of values.
    """

    def __init__(self, capacity: int, size: Callable[[V], int] = lambda _: 1) -> None:
        self._capacity = capacity
        self._size = size
        self._used = 0
        self._lock = Lock()
        # Least recently used first.
        self._known: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of a key, made where it is not kept; one that is larger than all room is not kept."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            value = make()
            if (size := self._size(value)) <= self._capacity:
                while self._used + size > self._capacity:
                    self._used -= self._size(self._known.popitem(last=False)[1])
                self._known[key] = value
                self._used += size
            return value


def bytes_of(conditioning: dict[str, torch.Tensor]) -> int:
    """Return the bytes of an image's conditioning."""
    return sum(tensor.nbytes for tensor in conditioning.values())


class TokenCounts:
    """Counts the tokens of texts, from any thread, each text once while it is in use.

    Args:
        count: Counts a text's tokens, with a tokenizer of its own: a tokenizer is for one thread at a time.
    """

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._known: LruCache[str, int] = LruCache(_TEXTS)

    def of(self, text: str) -> int:
        """Count the tokens of a text."""
        return self._known.get(text, lambda: self._count(text))


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
