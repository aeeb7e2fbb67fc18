"""How deeply nested the objects are that a process can read."""

from __future__ import annotations

import sys

DEEPEST = 10_000
"""Maps and lists within each other that Kubernetes' JSON may have (``maxNestingDepth`` of sigs.k8s.io/json)."""

FRAMES = 1_000
"""Room for what calls the decoder, and for an object's place in a list: Python's own limit."""


def allow_deepest_objects() -> None:
    """Let this process decode any object that the API server holds. Call it once, before it is asked for any.

    Python's own limit of 1,000 fails the whole list, or the watch, in which one such object is: a free-form field of
    one DiffusionModel (``affinity``, ``template``) would keep all of them from being read, in every namespace.

    Not for a process that reads what anybody sends: to write deep values takes longer than their size says.
    """
    sys.setrecursionlimit(max(sys.getrecursionlimit(), DEEPEST + FRAMES))
