"""Twins of a model: the same weights, and some modules in the place of its own.

A twin shares every weight with the model, and its modules but for those on the way to the ones that differ. The model
itself is never changed: what else runs with it runs as if there were no twin, and so do other threads meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class HookedModuleError(Exception):
    """A module's ``forward`` belongs to the module itself, as where weights come from main memory: it has no twin."""


def has_twin(model: nn.Module) -> bool:
    """Return whether a model may have twins: no module of it has a ``forward`` of its own, as hooks give it one."""
    return not any("forward" in module.__dict__ for module in model.modules())


def twin_with(model: Any, replaced: Mapping[str, nn.Module]) -> Any:
    """Return a twin of a model with other modules in the place of some of its own.

    Args:
        model: The model, which stays as it is.
        replaced: The other modules, by the name within the model of those that they stand for.

    Raises:
        HookedModuleError: The twin would compute with the model's own modules.
    """
    return _twin(model, "", replaced, {prefix for name in replaced for prefix in _prefixes(name)})


def shallow_copy(module: Any) -> Any:
    """Return a module of the same class with the same parts and weights, which is no compiled one."""
    copy = module.__class__.__new__(module.__class__)
    copy.__dict__.update(module.__dict__)
    # What was compiled of it calls the module's own parts.
    copy.__dict__["_compiled_call_impl"] = None
    return copy


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts))]


def _twin(module: Any, name: str, replaced: Mapping[str, nn.Module], ways: set[str]) -> Any:
    if name in replaced:
        return replaced[name]
    if name not in ways:
        return module
    if "forward" in module.__dict__:
        raise HookedModuleError(f"{name or type(module).__name__} has a forward of its own")
    twin = shallow_copy(module)
    twin.__dict__["_modules"] = {
        child: part if part is None else _twin(part, f"{name}.{child}" if name else child, replaced, ways)
        for child, part in module._modules.items()  # noqa: SLF001 - a module has no other way to its parts by name
    }
    return twin
