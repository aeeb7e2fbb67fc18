"""Loads what comes from elsewhere than the model's folder: checkpoints in one file, and single components."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import GGUFQuantizationConfig
from diffusers.loaders.single_file_model import FromOriginalModelMixin
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj
from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig

from kubediffusion.resources.diffusion_model import DiffusionModelSpec
from kubediffusion.resources.model_source import ComponentSource
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.loading.files import choose_variant
from kubediffusion.worker.loading.quantization import GGUF, Quantizer
from kubediffusion.worker.sources import LocalComponent, LocalModel, is_loaded

_CONFIGURATIONS = ("config.json", "scheduler_config.json")
"""Files in which diffusers and transformers name a component's class."""

_OF_A_COMPONENT = (
    "give a diffusers folder of the model as the source, and the file as spec.components[transformer].source.singleFile"
)
_OTHER_KIND = "the configuration is of another kind of model, or the file does not hold all of it"


@dataclass(frozen=True)
class Target:
    """What is loaded, and as what.

    Attributes:
        model: The model's files.
        index: Its ``model_index.json``.
        spec: What to load of it.
        dtype: Numbers that weights are held in, and that are computed with.
        device: Where to.
        quantizer: In how few bits each component is held.
    """

    model: LocalModel
    index: dict[str, Any]
    spec: DiffusionModelSpec
    dtype: torch.dtype
    device: torch.device
    quantizer: Quantizer


def load_components(target: Target) -> dict[str, Any]:
    """Load the components that come from elsewhere, by name.

    Raises:
        BadModelError: One cannot be loaded from where the model says.
        Exception: As diffusers or transformers raise it.
    """
    sources = {part.name: part.source for part in target.spec.components if part.source is not None}
    return {
        name: _load_component(name, source, target.model.components[name], target) for name, source in sources.items()
    }


def quantization_of(target: Target, loaded: Collection[str]) -> Any:
    """Return the configuration of diffusers by which components of the model's folder are quantized; None for none.

    Args:
        target: What is loaded.
        loaded: Components that do not come from the folder.

    Raises:
        BadModelError: One cannot be held as the model asks, or as it is stored.
    """
    folder = target.model.folder
    mapping = {}
    for name in (name for name, entry in target.index.items() if is_loaded(entry) and name not in loaded):
        target.quantizer.check_stored(name, folder / name)
        if name in target.quantizer.components:
            kind = _class_of(name, target.index[name], folder / name)
            mapping[name] = target.quantizer.config_of(name, kind, folder / name)
    mapping = {name: config for name, config in mapping.items() if config is not None}
    return PipelineQuantizationConfig(quant_mapping=mapping) if mapping else None


def _load_component(name: str, source: ComponentSource, local: LocalComponent, target: Target) -> Any:
    folder = local.folder if local.weights is None else target.model.folder / name
    kind = _class_of(name, target.index[name], folder)
    if local.weights is not None:
        field = f"spec.components[{name}].source.singleFile"
        return _load_file(name, kind, local.weights, target, field).to(target.device)
    options: dict[str, Any] = {}
    target.quantizer.check_stored(name, folder)
    if issubclass(kind, torch.nn.Module):
        options = {
            "dtype": target.dtype,
            "device_map": target.device.type,
            "use_safetensors": True if target.spec.use_safetensors else None,
            "variant": choose_variant(source, [folder], f"spec.components[{name}].source"),
        }
    if (config := target.quantizer.config_of(name, kind, folder)) is not None:
        options["quantization_config"] = config
    return kind.from_pretrained(str(folder), local_files_only=True, **options)


def _class_of(name: str, entry: list[Any], folder: Path) -> Any:
    """Return the class of a component: the one that its own configuration names, else that of the index."""
    for file in _CONFIGURATIONS:
        try:
            config = json.loads((folder / file).read_text())
        except (OSError, ValueError):
            # Most components have one of these files; of one that cannot be read its loader says why.
            continue
        if (kind := getattr(diffusers, str(config.get("_class_name")), None)) is not None:
            return kind
        if None in entry and config.get("architectures"):
            return simple_get_class_obj("transformers", config["architectures"][0])  # type: ignore[no-untyped-call]
    if None in entry:
        raise BadModelError(
            f"spec.components[{name}]: the model leaves this component out, and the folder does not say what it is"
        )
    return simple_get_class_obj(*entry)  # type: ignore[no-untyped-call]


def _load_file(name: str, kind: Any, file: Path, target: Target, field: str) -> Any:
    """Load a component from the one file of its weights, by the configuration that the model has for it."""
    if not issubclass(kind, FromOriginalModelMixin):
        raise BadModelError(f"{field}: diffusers loads no {kind.__name__} from one file; give the component's folder")
    folder = target.model.folder
    target.quantizer.check_file(name, file)
    options = {}
    if file.suffix == GGUF:
        options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=target.dtype)  # type: ignore[no-untyped-call]
    with _incomplete(field, file):
        loaded = kind.from_single_file(
            str(file), config=str(folder), subfolder=name, dtype=target.dtype, local_files_only=True, **options
        )
    _check_complete(field, file, {name: loaded})
    target.quantizer.quantize(name, loaded, folder / name, target.device)
    return loaded


def load_checkpoint(file: Path, target: Target, parts: dict[str, Any]) -> Any:
    """Load a whole pipeline from a checkpoint in one file.

    Args:
        file: The checkpoint, safetensors.
        target: What is loaded; the model's folder has configuration, tokenizers and scheduler.
        parts: Components that come from elsewhere, and what is left out.

    Raises:
        BadModelError: Pipelines of this class, or with these parts, are not loaded from the file.
        Exception: As diffusers raises it.
    """
    field, name, folder = "spec.source.singleFile", target.index["_class_name"], target.model.folder
    kind: Any = getattr(diffusers, name) if isinstance(name, str) else None
    if not hasattr(kind, "from_single_file"):
        raise BadModelError(f"{field}: diffusers loads no {name} from one file; {_OF_A_COMPONENT}")
    for part in target.quantizer.components:
        if part not in parts:
            target.quantizer.check_file(part, file)
    try:
        with _incomplete(field, file):
            pipeline = kind.from_single_file(
                str(file), config=str(folder), dtype=target.dtype, local_files_only=True, **parts
            )
    except SingleFileComponentError as error:
        words = str(error).partition("\n")[0]
        raise BadModelError(
            f"{field}: {file.name} does not hold the whole pipeline ({words}); name where the component comes from in "
            f"spec.components. Where it is a transformer alone, {_OF_A_COMPONENT}"
        ) from error
    _check_complete(field, file, pipeline.components)
    if target.spec.safety_checker and pipeline.components.get("safety_checker") is None:
        raise BadModelError(
            "spec.safetyChecker is true, but a checkpoint in one file holds no safety checker; name it in "
            "spec.components, or set safetyChecker to false"
        )
    for part in target.quantizer.components:
        if part not in parts:
            target.quantizer.quantize(part, pipeline.components[part], folder / part, target.device)
    return pipeline


@contextlib.contextmanager
def _incomplete(field: str, file: Path) -> Iterator[None]:
    """Have diffusers' error about weights that were not in a file, and so have no values, say so."""
    try:
        yield
    except NotImplementedError as error:
        if "meta tensor" not in str(error):
            raise
        raise BadModelError(f"{field}: {file.name} lacks weights; {_OTHER_KIND}") from error


def _check_complete(field: str, file: Path, components: dict[str, Any]) -> None:
    """Check that a file has given every weight: what it has not is on no device."""
    for name, module in components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        missing = [key for key, tensor in module.named_parameters() if tensor.is_meta]
        if missing:
            raise BadModelError(
                f"{field}: {file.name} lacks {len(missing)} weights of {name}, as {missing[0]}; {_OTHER_KIND}"
            )
