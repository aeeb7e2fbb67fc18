"""Estimates what a model takes of its device's memory, from the headers of its files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from kubediffusion.resources.model_source import Quantization
from kubediffusion.worker.loading.components import Target
from kubediffusion.worker.loading.files import DENOISERS, choose_variant, components_of
from kubediffusion.worker.loading.memory_plan import MemoryNeeds
from kubediffusion.worker.optional_libraries import stored_quantization
from kubediffusion.worker.sources import is_loaded

PIXELS = 1024 * 1024
"""Pixels of the image that must fit, but of U-Nets that were trained on fewer. Of larger ones, and of batches, the
engine finds out: it makes smaller batches where memory runs out."""

TILE = 512 * 512
"""Pixels of a tile, at most."""

_STEP_BYTES = 400
"""Bytes that a step takes for each pixel and byte of a number: FLUX.1 has 4096 tokens of 3072 numbers for 1024², of
which some thirty are alive at a time in a block."""

_UNET_SCALE = 8
"""Pixels of a latent's side, of U-Nets."""

_DECODE_TENSORS = 5
"""Tensors of the full size, and as many channels as the last block but one has, that live at a time in a decoder."""

_CHANNELS = 256
"""Those channels, of a VAE that does not say."""

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
"""Of safetensors' data types; all others have 8."""

_HELD = {Quantization.FLOAT8: 8, Quantization.INT8: 8, Quantization.NF4: 4.5}
"""Bits a weight of a matrix, scales included."""

_PARTS = {"first_stage_model": "vae", "vae": "vae", "cond_stage_model": "text_encoder", "conditioner": "text_encoder"}
_PARTS |= {"text_encoders": "text_encoder"}
"""Components of a checkpoint in one file, by what the names of their weights begin with; the rest is the denoiser."""


@dataclass
class _Sizes:
    """Bytes of a component's weights: all, the largest, and those of each of its blocks."""

    total: int = 0
    largest: int = 0
    blocks: Counter[str] = field(default_factory=Counter)
    movable: bool = True

    def add(self, name: str, size: int) -> None:
        self.total += size
        self.largest = max(self.largest, size)
        # As diffusers groups them: the members of lists that the module itself has.
        parts = name.split(".")
        if len(parts) > 2 and parts[1].isdigit():
            self.blocks[".".join(parts[:2])] += size

    @property
    def group(self) -> int:
        """The largest of its blocks, and what is in none."""
        if not self.blocks or not self.movable:
            return self.total
        return self.total - self.blocks.total() + max(self.blocks.values())

    @property
    def layer(self) -> int:
        """The largest of its weights."""
        return self.largest if self.movable else self.total


def memory_needs(target: Target) -> MemoryNeeds:
    """Estimate what a model takes of its device's memory, for one image of 1024².

    Args:
        target: What is loaded, and as what.
    """
    sizes = _component_sizes(target)
    denoisers = [part for name, part in sizes.items() if name in DENOISERS]
    encoders = [part for name, part in sizes.items() if name.startswith("text_encoder")]
    others = [part for name, part in sizes.items() if name not in DENOISERS and not name.startswith("text_encoder")]
    number = target.dtype.itemsize
    config = _config(target.model.folder / "vae")
    channels = config.get("block_out_channels") or [_CHANNELS]
    side = _config(target.model.folder / "unet").get("sample_size")
    pixels = min(PIXELS, (side * _UNET_SCALE) ** 2) if isinstance(side, int) else PIXELS
    pixel = _DECODE_TENSORS * channels[min(1, len(channels) - 1)] * (4 if config.get("force_upcast") else number)
    return MemoryNeeds(
        denoiser=sum(part.total for part in denoisers),
        denoiser_group=sum(part.group for part in denoisers),
        text_encoders=sum(part.total for part in encoders),
        text_encoder_layer=sum(part.layer for part in encoders),
        rest=sum(part.total for part in others),
        step=pixels * _STEP_BYTES * number,
        decode=pixels * pixel,
        decode_tile=(min(pixels, TILE) if _tiles(target) else pixels) * pixel,
    )


def _tiles(target: Target) -> bool:
    """Return whether the VAE can decode in tiles."""
    entry: Any = target.index.get("vae")
    kind = getattr(diffusers, str(entry[1]), None) if is_loaded(entry) else None
    return hasattr(kind, "tiled_decode") or hasattr(kind, "_tiled_decode")


def _component_sizes(target: Target) -> dict[str, _Sizes]:
    """Return the sizes of each component's weights, by its name."""
    model, sizes = target.model, dict[str, _Sizes]()
    for name, part in model.components.items():
        files = [part.weights] if part.weights is not None else _weights(part.folder, target, name)
        sizes[name] = _measure(files, target, name, part.folder)
    if model.checkpoint is not None:
        whole = _split(model.checkpoint, target)
        return {name: part for name, part in whole.items() if name not in sizes} | sizes
    for name, entry in target.index.items():
        if is_loaded(entry) and name not in sizes and (name != "safety_checker" or target.spec.safety_checker):
            folder = model.folder / name
            sizes[name] = _measure(_weights(folder, target, name), target, name, folder)
    return sizes


def _weights(folder: Path, target: Target, name: str) -> list[Path]:
    """Return the files of weights that are loaded of a component's folder."""
    if not folder.is_dir():
        return []
    source = next((part.source for part in target.spec.components if part.name == name), None)
    if source is not None:
        variant = choose_variant(source, [folder], f"spec.components[{name}].source")
    else:
        variant = choose_variant(target.spec.source, components_of(target.model.folder), "spec.source")
    files = sorted(folder.glob("*.safetensors"))
    named = [file for file in files if variant is not None and f".{variant}" in file.name]
    plain = [file for file in files if file.name.count(".") == 1]
    return named or plain or files or sorted(folder.glob("*.bin"))


def _measure(files: Iterable[Path], target: Target, name: str, folder: Path) -> _Sizes:
    sizes = _Sizes()
    held = target.quantizer.kind_of(name)
    stored = stored_quantization(folder) is not None
    kind = getattr(diffusers, str(target.index[name][1]), None)
    # Blocks that are quantized are not moved to and fro.
    sizes.movable = held is Quantization.NONE and not stored and getattr(kind, "_supports_group_offloading", True)
    for file in files:
        if file.suffix != ".safetensors":
            # Of GGUF this is what is held; pickled weights are seldom larger.
            sizes.add("", file.stat().st_size)
            sizes.movable = False
            continue
        for key, kind, shape in _header(file):
            sizes.add(key, _held(kind, shape, target.dtype, Quantization.NONE if stored else held, as_stored=stored))
    return sizes


def _split(checkpoint: Path, target: Target) -> dict[str, _Sizes]:
    """Return the sizes of the components of a checkpoint in one file."""
    sizes: dict[str, _Sizes] = {}
    denoiser = next((name for name in DENOISERS if name in target.index), DENOISERS[0])
    for key, kind, shape in _header(checkpoint):
        name = _PARTS.get(key.partition(".")[0], denoiser)
        # Names of the original code: their blocks are not those of diffusers.
        held = target.quantizer.kind_of(name)
        sizes.setdefault(name, _Sizes(movable=held is Quantization.NONE)).add(
            key, _held(kind, shape, target.dtype, held)
        )
    for part in sizes.values():
        part.blocks.clear()
    return sizes


def _header(file: Path) -> list[tuple[str, str, list[int]]]:
    """Return names, data types and shapes of a file's tensors; nothing of one that the loader refuses."""
    try:
        with safe_open(file, "pt") as weights:
            parts = [(key, weights.get_slice(key)) for key in weights.keys()]  # noqa: SIM118 - it is no mapping
            return [(key, part.get_dtype(), part.get_shape()) for key, part in parts]
    except (OSError, SafetensorError):
        return []


def _held(
    kind: str, shape: list[int], dtype: torch.dtype, quantization: Quantization, *, as_stored: bool = False
) -> int:
    """Return the bytes that a tensor takes on the device."""
    number = 1
    for side in shape:
        number *= side
    if quantization is not Quantization.NONE and len(shape) == 2 and kind in _FLOATS:
        return int(number * _HELD[quantization] / 8)
    bits = dtype.itemsize * 8 if kind in _FLOATS and not as_stored else _BITS.get(kind, 8)
    return number * bits // 8


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        # The loader meets the same, and says so.
        return {}
    return found if isinstance(found, dict) else {}
