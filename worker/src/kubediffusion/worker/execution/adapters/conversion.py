"""Reads an adapter's file: any safetensors file that diffusers converts for the pipeline's class, and nothing else.

The conversion of names is diffusers' own (``lora_state_dict`` of the pipeline's class). What comes of it is checked
here against the model's layers, where diffusers would warn, or would ignore what it does not know.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from torch import nn

from kubediffusion.resources.conditions import AdapterReason
from kubediffusion.worker.engine.adapters import AdapterRefusedError
from kubediffusion.worker.execution.adapters.weights import LoadedAdapter, LowRank
from kubediffusion.worker.execution.twins import has_twin

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_HEADER = 8
_LINEAR = 2
_CONVOLUTION = 4

_OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
}
"""Parts of keys by which weights are known that are no plain low-rank factors, and what they are."""

_SHOWN = 3
"""Keys that a message names."""


def adaptable_components(pipeline: Any) -> tuple[str, ...]:
    """Name the components of a pipeline whose layers diffusers' loader for its class changes; none without a loader."""
    if not hasattr(type(pipeline), "lora_state_dict"):
        return ()
    names = getattr(pipeline, "_lora_loadable_modules", ())
    return tuple(name for name in names if isinstance(getattr(pipeline, name, None), nn.Module))


def read_adapter(file: Path, pipeline: Any, most_rank: int) -> LoadedAdapter:
    """Read an adapter, convert it and check that it fits a pipeline. It may be called from any thread.

    Args:
        file: A safetensors file. Nothing of it is unpickled, whatever its name.
        pipeline: The pipeline, whose layers are only looked at.
        most_rank: The largest rank that is taken.

    Raises:
        AdapterRefusedError: It cannot be used with this pipeline.
        OSError: The file cannot be read.
    """
    components = adaptable_components(pipeline)
    if not most_rank or not components:
        raise AdapterRefusedError(AdapterReason.NOT_SUPPORTED, f"{type(pipeline).__name__} takes no adapters")
    # Read once, and not mapped: a file that is overwritten, meanwhile or later, must neither change what the digest is
    # of, nor end the worker by SIGBUS where it has become shorter.
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    stored, metadata = _parse(data, file.name)
    del data
    _check_methods(stored)
    converted, alphas = _converted(stored, pipeline)
    known: dict[str, dict[str, LowRank]] = {}
    for component in components:
        of_component = _without_prefix(converted, component)
        if not of_component:
            continue
        module = getattr(pipeline, component)
        peft = _as_peft(of_component, text_encoder=component.startswith("text_encoder"))
        if not hasattr(module, "text_model"):
            # CLIP's is flat in newer releases of transformers, and files name the older one's.
            peft = {_flat(key): value for key, value in peft.items()}
        if not has_twin(module):
            raise AdapterRefusedError(
                AdapterReason.NOT_SUPPORTED,
                f"it changes the {component}, whose weights come from main memory here (spec.memory)",
            )
        scales = _Scales(_without_prefix(alphas, component), _without_prefix(metadata, component))
        known[component] = _layers(peft, module, component, scales, most_rank)
    if strange := [key for key in converted if key.split(".")[0] not in known]:
        why = f"they are not of {' or '.join(components)} of {type(pipeline).__name__}"
        raise _unknown(strange, why, AdapterReason.WRONG_BASE_MODEL)
    if not any(known.values()):
        raise AdapterRefusedError(AdapterReason.UNKNOWN_KEYS, "the file holds no weights of an adapter")
    return LoadedAdapter(digest, known)


def _parse(data: bytes, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return a file's tensors, and the settings that PEFT wrote beside them, if it did."""
    try:
        stored = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise AdapterRefusedError(
            AdapterReason.NOT_SAFETENSORS,
            f"{name} is no safetensors file ({error}); convert it: other formats can run code, and are never read",
        ) from None
    # It is valid by now: 8 bytes with the header's length, and the header, which the library tells of files alone.
    header = json.loads(data[_HEADER : _HEADER + int.from_bytes(data[:_HEADER], "little")])
    try:
        metadata = json.loads(header.get("__metadata__", {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except ValueError:
        metadata = {}
    return stored, metadata if isinstance(metadata, dict) else {}


def _check_methods(stored: Mapping[str, torch.Tensor]) -> None:
    for part, method in _OTHER_METHODS.items():
        if found := [key for key in stored if part in key]:
            raise _unknown(found, f"it is a {method}, not a plain LoRA", AdapterReason.UNKNOWN_KEYS)


def _converted(stored: dict[str, torch.Tensor], pipeline: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Convert names as the loader of the pipeline's class does; return the weights, and the alphas that are apart."""
    convert = type(pipeline).lora_state_dict
    options: dict[str, Any] = {}
    if "return_alphas" in inspect.signature(convert).parameters:
        options["return_alphas"] = True
    if getattr(pipeline, "unet", None) is not None:
        options["unet_config"] = pipeline.unet.config
    try:
        made = convert(dict(stored), **options)
    except Exception as error:  # noqa: BLE001 - diffusers raises what comes of keys that it does not know
        raise AdapterRefusedError(
            AdapterReason.UNKNOWN_KEYS,
            f"diffusers cannot convert it for {type(pipeline).__name__}: {type(error).__name__}: {error}",
        ) from None
    weights, alphas = made if isinstance(made, tuple) else (made, None)
    return weights, {key: float(value) for key, value in (alphas or {}).items()}


def _without_prefix(values: Mapping[str, Any], component: str) -> dict[str, Any]:
    prefix = f"{component}."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _as_peft(weights: dict[str, torch.Tensor], *, text_encoder: bool) -> dict[str, torch.Tensor]:
    """Give a component's weights the names of PEFT, as diffusers does before it loads them."""
    try:
        if text_encoder:
            own_names: Any = convert_state_dict_to_diffusers
            peft_names: Any = convert_state_dict_to_peft
            weights = peft_names(own_names(weights))
        elif not any(".lora_A" in key for key in weights):
            unet_names: Any = convert_unet_state_dict_to_peft
            weights = unet_names(weights)
    except ValueError as error:
        raise _unknown(list(weights), str(error), AdapterReason.UNKNOWN_KEYS) from None
    return weights


class _Scales:
    """What a layer's factors are multiplied by: alpha by rank, as diffusers finds the two for PEFT.

    Args:
        alphas: By layer; a layer that has none has the one of most layers.
        metadata: Settings of PEFT; empty for none.
    """

    def __init__(self, alphas: Mapping[str, float], metadata: Mapping[str, Any]) -> None:
        self._alphas = {_flat(key.removesuffix(".alpha").split(".lora")[0]): alpha for key, alpha in alphas.items()}
        self._usual = Counter(self._alphas.values()).most_common(1)[0][0] if self._alphas else None
        self._metadata = metadata

    def of(self, layer: str, rank: int) -> float:
        """Return the scale of a layer's factors."""
        if self._usual is not None:
            return self._alphas.get(_flat(layer), self._usual) / rank
        alpha = self._metadata.get("lora_alpha")
        if alpha is None:
            return 1.0
        patterns = self._metadata.get("alpha_pattern") or {}
        named = next((value for key, value in patterns.items() if _names(key, layer)), alpha)
        return float(named) / (rank**0.5 if self._metadata.get("use_rslora") else rank)


def _flat(layer: str) -> str:
    return layer.removeprefix("text_model.")


def _names(pattern: str, layer: str) -> bool:
    """Return whether a key of PEFT's patterns names a layer: by its whole name, or by its last parts."""
    plain = pattern.removeprefix("^")
    return layer == plain or (not pattern.startswith("^") and layer.endswith(f".{plain}"))


def _layers(
    weights: dict[str, torch.Tensor], module: nn.Module, component: str, scales: _Scales, most_rank: int
) -> dict[str, LowRank]:
    """Check one component's factors against its layers."""
    strange = [key for key in weights if not key.endswith((_DOWN, _UP))]
    names = {key.removesuffix(_DOWN) for key in weights if key.endswith(_DOWN)}
    ups = {key.removesuffix(_UP) for key in weights if key.endswith(_UP)}
    strange += [name + _DOWN for name in names - ups] + [name + _UP for name in ups - names]
    if strange:
        raise _unknown(strange, f"no pair of factors of {component}", AdapterReason.UNKNOWN_KEYS)
    layers = dict(module.named_modules())
    if absent := sorted(name for name in names if name not in layers):
        raise _unknown(absent, f"the model's {component} has no such layers", AdapterReason.WRONG_BASE_MODEL)
    found = {}
    for name in names:
        down, up = weights[name + _DOWN], weights[name + _UP]
        if {down.dim(), up.dim()} - {_LINEAR, _CONVOLUTION} or not down.numel():
            raise _unknown([f"{component}.{name}"], "its factors are no matrices", AdapterReason.UNKNOWN_KEYS)
        found[name] = _factors(layers[name], f"{component}.{name}", down, up, scales.of(name, len(down)))
        if found[name].rank > most_rank:
            raise AdapterRefusedError(
                AdapterReason.RANK_TOO_LARGE,
                f"{component}.{name} has rank {found[name].rank}, more than the {most_rank} that this worker takes "
                "(KUBEDIFFUSION_ADAPTER_RANK)",
            )
    return found


def _factors(layer: nn.Module, name: str, down: torch.Tensor, up: torch.Tensor, scale: float) -> LowRank:
    """Return the factors of one layer, in the shape of :class:`LowRank`."""
    if isinstance(layer, nn.Conv2d):
        wanted: tuple[int, ...] = (layer.in_channels, *layer.kernel_size)
        outputs = layer.out_channels
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    elif isinstance(layer, nn.Linear):
        wanted, outputs, plain = (layer.in_features,), layer.out_features, True
    else:
        wanted, outputs, plain = (), 0, False
    if not plain:
        raise _unknown([name], f"a {type(layer).__name__} takes no adapter", AdapterReason.UNKNOWN_KEYS)
    # A convolution of one pixel is a matrix, and files write it as either.
    if (
        down[0].numel() != torch.Size(wanted).numel()
        or down.shape[1] != wanted[0]
        or up.shape[:2].numel() != up.numel()
        or up.shape[:2] != (outputs, len(down))
    ):
        raise AdapterRefusedError(
            AdapterReason.WRONG_BASE_MODEL,
            f"{name} takes {wanted[0]} inputs and gives {outputs} outputs, and the adapter's factors have the shapes "
            f"{list(down.shape)} and {list(up.shape)}: it was made for another model",
        )
    if not (down.isfinite().all() and up.isfinite().all()):
        raise AdapterRefusedError(AdapterReason.UNKNOWN_KEYS, f"{name} has weights that are no numbers")
    return LowRank(down.reshape(len(down), *wanted), (up.reshape(outputs, len(down)).float() * scale).to(up.dtype))


def _unknown(keys: list[str], why: str, reason: AdapterReason) -> AdapterRefusedError:
    shown = ", ".join(sorted(keys)[:_SHOWN])
    return AdapterRefusedError(reason, f"{len(keys)} keys cannot be used ({why}): {shown}")
