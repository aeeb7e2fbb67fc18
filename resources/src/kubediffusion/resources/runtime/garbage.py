"""Python's collector of cycles, for processes whose objects come and go by reference counting."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

YOUNG = 10_000
"""Objects made and not yet freed before a look at the young ones. Python's own default, some hundreds or a few thousand
as the version goes, is reached at every few events."""


def freeze_startup_objects() -> None:
    """Call once all is set up: what is there by now stays, and need not be looked at again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Look for no cycles meanwhile, and never again at what is there at the end: for long imports.

    They make objects by the hundred thousand and next to no garbage; to look through them takes a tenth of their time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
