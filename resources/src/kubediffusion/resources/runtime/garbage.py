"""Python's cyclic garbage collector (:mod:`gc`), tuned for processes whose objects are freed by reference counting."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

YOUNG = 10_000
"""Allocations beyond frees that start a collection of the youngest generation. Python's default (700 in 3.11, 2,000 in
3.13) is reached every few watch events."""


def freeze_startup_objects() -> None:
    """Exempt all objects that exist from collections, and make these rarer. Call it once, when startup is complete."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause collections in the context, and exempt the objects that exist at its end. Meant for long imports.

    An import of PyTorch and diffusers makes hundreds of thousands of objects and hardly any garbage; collections take a
    tenth of its time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
