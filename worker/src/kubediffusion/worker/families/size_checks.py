"""The sizes that a pipeline without a family refuses: its own ``check_inputs`` is asked, once it has been loaded."""

from __future__ import annotations

import inspect
from typing import Any

_MULTIPLES = (16, 32, 64, 128)
"""Grids of sizes beyond that of a job's field, which is 8."""

_ODD = 9
"""A side of so many times a multiple is none of twice that multiple, and no size that a pipeline finds too small."""


def refused_multiple(pipeline: Any) -> int | None:
    """Return the number of pixels of which both sides must be multiples; None where 8 will do, or nothing says.

    Pipelines that round sizes refuse none, nor do those that take the nearest of a list first.
    """
    if "use_resolution_binning" in inspect.signature(type(pipeline).__call__).parameters:
        return None
    if _refuses(pipeline, 8 * _ODD):
        return next((multiple for multiple in _MULTIPLES if _refuses(pipeline, multiple * _ODD) is False), None)
    return None


def _refuses(pipeline: Any, side: int) -> bool | None:
    """Return whether a pipeline refuses a square for its size; None where it refuses it for anything else."""
    check = getattr(pipeline, "check_inputs", None)
    if check is None:
        return None
    parameters = inspect.signature(check).parameters
    if not {"height", "width"} <= parameters.keys():
        return None
    # What a job names nothing of: the call's own defaults.
    call = inspect.signature(type(pipeline).__call__).parameters
    known: dict[str, Any] = {"prompt": "a", "height": side, "width": side}
    arguments = {
        name: known[name] if name in known else _default(call.get(name, parameter))
        for name, parameter in parameters.items()
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    }
    try:
        check(**arguments)
    except Exception as error:  # noqa: BLE001 - what it raises is the answer
        return True if "divisible" in str(error) else None
    return False


def _default(parameter: inspect.Parameter) -> Any:
    return None if parameter.default is parameter.empty else parameter.default
