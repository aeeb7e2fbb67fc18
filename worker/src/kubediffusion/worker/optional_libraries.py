"""Keeps libraries that few models need from being imported: diffusers and transformers import those that they find.

torchao takes half a second to import, bitsandbytes several; each would delay the start of every worker.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from kubediffusion.resources.diffusion_model import DiffusionModelSpec
from kubediffusion.resources.model_source import Quantization

PACKAGES = {Quantization.FLOAT8: "torchao", Quantization.INT8: "torchao", Quantization.NF4: "bitsandbytes"}
"""The library of each kind of quantization."""

OPTIONAL = frozenset(PACKAGES.values())
"""Libraries that are imported for models alone that need them."""


def hide_libraries(names: Iterable[str]) -> None:
    """Make optional libraries that nobody has imported yet look as if they were not installed, in this process."""
    for name in names:
        # As the import system has it: https://docs.python.org/3/reference/import.html#the-module-cache.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def hidden_libraries() -> set[str]:
    """Return the optional libraries that look as if they were not installed in this process."""
    return {name for name in OPTIONAL if name in sys.modules and sys.modules[name] is None}


def needed_libraries(spec: DiffusionModelSpec, folder: Path | None, fetched: Iterable[Path] = ()) -> set[str]:
    """Return the optional libraries that a model needs, as far as that is known before its weights are fetched.

    Args:
        spec: The model.
        folder: Where it lies, if on this machine.
        fetched: Folders in which components' configurations lie that have been fetched.
    """
    kinds = {spec.quantization, *(component.quantization for component in spec.components)}
    needed = {package for kind, package in PACKAGES.items() if kind in kinds}
    folders = [] if folder is None else [path.parent for path in folder.glob("*/config.json")]
    sources = (component.source for component in spec.components)
    folders += [
        Path(source.path) / (source.subfolder or "")
        for source in sources
        if source is not None and source.path is not None
    ]
    folders += [path.parent for root in fetched for path in root.rglob("config.json")]
    return needed | {stored for path in folders if (stored := stored_quantization(path)) is not None} & OPTIONAL


def stored_quantization(folder: Path) -> str | None:
    """Return the method by which a component is stored quantized, as its configuration names it; None for none."""
    try:
        config = json.loads((folder / "config.json").read_text()).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # the loader gives a better message
    return str(config.get("quant_method")) if isinstance(config, dict) else None
