"""Python's collector of cycles, for processes whose objects come and go by reference counting."""

from __future__ import annotations

import gc

YOUNG = 10_000
"""Objects made and not yet freed before a look at the young ones. Python's own default, some hundreds or a few thousand
as the version goes, is reached at every few events."""


def settle() -> None:
    """Call once all is set up: what is there by now stays, and need not be looked at again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)
