"""What the names and the headers of a model's files say, before anything of it is loaded."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from kubediffusion.resources.model_source import ComponentSource, ModelSource
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.sources import LocalModel

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Data types of PyTorch by the names that safetensors has for them."""

_VARIANT = re.compile(r"[^.]+(\.(?P<variant>[a-z]+\w*))?(-\d+-of-\d+)?\.safetensors")
"""A file of weights; its shards may be numbered."""

DENOISERS = ("transformer", "unet", "prior", "decoder")
"""Components whose precision counts, the first that is there."""


def stored_dtype(model: LocalModel) -> torch.dtype | None:
    """Return the numbers that most of the denoiser's weights are stored in; None where no header says it."""
    sizes: Counter[str] = Counter()
    for file in _denoiser_files(model):
        try:
            with safe_open(file, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118 - it is no mapping
                    part = weights.get_slice(key)
                    sizes[part.get_dtype()] += math.prod(part.get_shape())
        except (OSError, SafetensorError):
            return None  # the loader gives a better message
    return _STORED.get(sizes.most_common(1)[0][0]) if sizes else None


def _denoiser_files(model: LocalModel) -> list[Path]:
    """Return the files of the denoiser's weights, as far as they are safetensors."""
    for name in DENOISERS:
        if (part := model.components.get(name)) is not None:
            files = sorted(part.folder.glob("*.safetensors")) if part.weights is None else [part.weights]
            return [file for file in files if file.suffix == ".safetensors"]
    if model.checkpoint is not None:
        return [model.checkpoint]
    folder = next((model.folder / name for name in DENOISERS if (model.folder / name).is_dir()), None)
    return [] if folder is None else sorted(folder.glob("*.safetensors"))


def components_of(folder: Path) -> list[Path]:
    """Return the folders of a diffusers folder's components."""
    return [path for path in folder.iterdir() if path.is_dir()]


def choose_variant(source: ModelSource | ComponentSource, components: list[Path], field: str) -> str | None:
    """Return the variant to load: the one that a source names, else the only one that there is.

    Args:
        source: The source.
        components: Folders of the components that come from there.
        field: Where the source is in the model's spec.

    Raises:
        BadModelError: No component has files of the variant that the source names.
    """
    named = source.variant or (source.hugging_face.variant if source.hugging_face is not None else None)
    if named is None:
        return only_variant(components)
    found = set().union(*(_variants(component) for component in components))
    if found and named not in found:
        others = ", ".join(sorted(variant for variant in found if variant is not None))
        raise BadModelError(
            f"{field}.variant: there are no {named} files; name one that there is ({others or 'none has a name'}), or "
            "leave the field out"
        )
    return named


def only_variant(components: Iterable[Path]) -> str | None:
    """Return the variant that components' folders hold alone, as ``fp16`` of ``model.fp16.safetensors``, or None."""
    found: set[str | None] = set()
    for component in components:
        if None not in (variants := _variants(component)):
            found |= variants
    return found.pop() if len(found) == 1 else None


def _variants(component: Path) -> set[str | None]:
    names = [_VARIANT.fullmatch(file.name) for file in component.glob("*.safetensors")]
    return {match["variant"] for match in names if match is not None}
