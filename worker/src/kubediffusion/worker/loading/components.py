"""Loads what comes from elsewhere than the model's folder: checkpoints in one file, and single components."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import GGUFQuantizationConfig
from diffusers.loaders.single_file_model import FromOriginalModelMixin
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj

from kubediffusion.resources.diffusion_model import DiffusionModelSpec
from kubediffusion.resources.model_source import ModelComponent
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.loading.files import choose_variant
from kubediffusion.worker.sources import LocalComponent, LocalModel

_CONFIGURATIONS = ("config.json", "scheduler_config.json")
"""Files in which diffusers and transformers name a component's class."""

_GGUF = ".gguf"

_OF_A_COMPONENT = (
    "give a diffusers folder of the model as the source, and the file as spec.components[transformer].source.singleFile"
)
_OTHER_KIND = "the configuration is of another kind of model, or the file does not hold all of it"


def load_components(
    model: LocalModel, index: dict[str, Any], spec: DiffusionModelSpec, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Load the components that come from elsewhere, by name.

    Args:
        model: The model's files.
        index: Its ``model_index.json``.
        spec: Where each comes from.
        dtype: Numbers that weights are held in.
        device: Where to.

    Raises:
        BadModelError: One cannot be loaded from where the model says.
        Exception: As diffusers or transformers raise it.
    """
    return {
        part.name: _load_component(part, model.components[part.name], model, index[part.name], spec, dtype, device)
        for part in spec.components
    }


def _load_component(
    part: ModelComponent,
    local: LocalComponent,
    model: LocalModel,
    entry: list[Any],
    spec: DiffusionModelSpec,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    kind = _class_of(part.name, entry, local.folder if local.weights is None else model.folder / part.name)
    if local.weights is not None:
        return _load_file(part.name, kind, local.weights, model.folder, dtype).to(device)
    options: dict[str, Any] = {}
    if issubclass(kind, torch.nn.Module):
        options = {
            "dtype": dtype,
            "device_map": device.type,
            "use_safetensors": True if spec.use_safetensors else None,
            "variant": choose_variant(part.source, [local.folder], f"spec.components[{part.name}].source"),
        }
    return kind.from_pretrained(str(local.folder), local_files_only=True, **options)


def _class_of(name: str, entry: list[Any], folder: Path) -> Any:
    """Return the class of a component: the one that its own configuration names, else that of the index."""
    for file in _CONFIGURATIONS:
        try:
            config = json.loads((folder / file).read_text())
        except (OSError, ValueError):
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


def _load_file(name: str, kind: Any, file: Path, configuration: Path, dtype: torch.dtype) -> Any:
    """Load a component from the one file of its weights, by the configuration that the model has for it."""
    field = f"spec.components[{name}].source.singleFile"
    if not issubclass(kind, FromOriginalModelMixin):
        raise BadModelError(f"{field}: diffusers loads no {kind.__name__} from one file; give the component's folder")
    options: dict[str, Any] = {}
    if file.suffix == _GGUF:
        options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)  # type: ignore[no-untyped-call]
    with _incomplete(field, file):
        loaded = kind.from_single_file(
            str(file), config=str(configuration), subfolder=name, dtype=dtype, local_files_only=True, **options
        )
    _check_complete(field, file, {name: loaded})
    return loaded


def load_checkpoint(
    file: Path,
    model: LocalModel,
    index: dict[str, Any],
    spec: DiffusionModelSpec,
    dtype: torch.dtype,
    components: dict[str, Any],
) -> Any:
    """Load a whole pipeline from a checkpoint in one file.

    Args:
        file: The checkpoint, safetensors.
        model: Whose folder has configuration, tokenizers and scheduler.
        index: Its ``model_index.json``.
        spec: What to load of it.
        dtype: Numbers that weights are held in.
        components: What comes from elsewhere, and what is left out.

    Raises:
        BadModelError: Pipelines of this class, or with these parts, are not loaded from the file.
        Exception: As diffusers raises it.
    """
    field, name = "spec.source.singleFile", index["_class_name"]
    kind: Any = getattr(diffusers, name) if isinstance(name, str) else None
    if not hasattr(kind, "from_single_file"):
        raise BadModelError(f"{field}: diffusers loads no {name} from one file; {_OF_A_COMPONENT}")
    try:
        with _incomplete(field, file):
            pipeline = kind.from_single_file(
                str(file), config=str(model.folder), dtype=dtype, local_files_only=True, **components
            )
    except SingleFileComponentError as error:
        words = str(error).partition("\n")[0]
        raise BadModelError(
            f"{field}: {file.name} does not hold the whole pipeline ({words}); name where the component comes from in "
            f"spec.components. Where it is a transformer alone, {_OF_A_COMPONENT}"
        ) from error
    _check_complete(field, file, pipeline.components)
    if spec.safety_checker and pipeline.components.get("safety_checker") is None:
        raise BadModelError(
            "spec.safetyChecker is true, but a checkpoint in one file holds no safety checker; name it in "
            "spec.components, or set safetyChecker to false"
        )
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
