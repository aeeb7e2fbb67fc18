"""Loads the pipeline that a DiffusionModel names to its device. Knows no engine and no family."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils.import_utils import DummyObject
from safetensors import SafetensorError, safe_open

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.diffusion_model import DiffusionModelSpec, ModelSource
from kubediffusion.worker.cpus import usable_cpus
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.loading.fetch import fetch_from_any_source
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel, check_folder
from kubediffusion.worker.stages import OnStage, ignore_stage

ChooseDtype = Callable[[dict[str, Any], torch.dtype | None], torch.dtype]
"""Chooses the numbers that weights are held in, by the model's ``model_index.json`` and those that the denoiser's are
stored in."""

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Data types of PyTorch by the names that safetensors has for them."""

_VARIANT = re.compile(r"[^.]+(\.(?P<variant>[a-z]+\w*))?(-\d+-of-\d+)?\.safetensors")
"""A file of weights; its shards may be numbered."""

_DENOISERS = ("transformer", "unet", "prior", "decoder")
"""Components whose precision counts, the first that is there."""


def load_pipeline(
    settings: Settings,
    device: torch.device,
    choose_dtype: ChooseDtype,
    on_stage: OnStage = ignore_stage,
    prefetched: Future[LocalModel] | None = None,
) -> tuple[Any, str]:
    """Load the pipeline to a device, and return it with the model's revision.

    Args:
        settings: What to load, and how.
        device: Where to.
        choose_dtype: Chooses the numbers that the weights are held in.
        on_stage: Called with each stage.
        prefetched: The model, where it is being fetched already.

    Raises:
        BadModelError: It cannot be loaded, and a restart would not change that.
        Exception: It cannot be loaded now.
    """
    _quiet_libraries(settings)
    torch.set_num_threads(settings.torch_threads or usable_cpus())
    on_stage(EngineReason.FETCHING_MODEL, f"the model's files come from {_origin(settings.spec.source)}")
    model = prefetched.result() if prefetched is not None else fetch_from_any_source(settings)
    index = check_folder(model.folder, settings.spec)
    on_stage(EngineReason.LOADING_WEIGHTS, f"the weights go to the {'GPU' if device.type == 'cuda' else 'CPU'}")
    check_class(index)
    dtype = choose_dtype(index, stored_dtype(model.folder))
    return load_weights(model.folder, index, settings.spec, dtype, device), model.revision


def _origin(source: ModelSource) -> str:
    """Say where a model comes from, for people."""
    if source.hugging_face is not None:
        return f"{source.hugging_face.repository} of the Hugging Face Hub"
    if source.s3 is not None:
        return source.s3.uri
    return "a folder"


def load_weights(
    folder: Path, index: dict[str, Any], spec: DiffusionModelSpec, dtype: torch.dtype, device: torch.device
) -> Any:
    """Load the pipeline. Its weights are read straight to the device: main memory holds one tensor of them at a time.

    Args:
        folder: The diffusers folder.
        index: Its ``model_index.json``.
        spec: What to load of it.
        dtype: Numbers that the weights are held in.
        device: Where to.

    Raises:
        BadModelError: It cannot be loaded, and a restart would not change that.
        Exception: It cannot be loaded now.
    """
    # A map to one device places weights while they are read and leaves no hooks of accelerate on the modules.
    options: dict[str, Any] = {"device_map": device.type if _placeable(index) else None}
    # What was left out when the model was saved; the pipelines ask for it all the same.
    options |= {name: None for name, value in index.items() if value == [None, None]}
    if not spec.safety_checker and "safety_checker" in index:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    if spec.source.hugging_face is not None and spec.source.hugging_face.variant is not None:
        options["variant"] = spec.source.hugging_face.variant
    elif (variant := only_variant(folder)) is not None:
        options["variant"] = variant
    try:
        pipeline = DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            str(folder),
            dtype=dtype,
            use_safetensors=True if spec.use_safetensors else None,
            trust_remote_code=spec.trust_remote_code,
            local_files_only=True,
            **options,
        )
        # Parts that are no models of diffusers or transformers know no map.
        return pipeline.to(device)
    except Exception as error:
        if _may_pass(error):
            raise
        raise BadModelError(f"the pipeline cannot be loaded: {type(error).__name__}: {error}") from error


def check_class(index: dict[str, Any]) -> None:
    """Check, before anything is loaded, that the pipeline's class can be used here.

    Classes that are code of the model's own are known only once they are loaded.

    Raises:
        BadModelError: It cannot.
    """
    name = index["_class_name"]
    if not isinstance(name, str):
        return
    if name.startswith(("Onnx", "Flax")):
        raise BadModelError(f"{name} is not for PyTorch: give the folder of the model that holds safetensors")
    pipeline = getattr(diffusers, name, None)
    if pipeline is None:
        raise BadModelError(f"diffusers {diffusers.__version__} has no pipeline class {name}")
    if issubclass(type(pipeline), DummyObject):
        missing = ", ".join(pipeline._backends)  # noqa: SLF001 - what diffusers itself says in its error
        raise BadModelError(f"{name} needs packages of which the worker lacks one: {missing}")


def stored_dtype(folder: Path) -> torch.dtype | None:
    """Return the numbers that most of the denoiser's weights are stored in; None where no header says it."""
    component = next((folder / name for name in _DENOISERS if (folder / name).is_dir()), None)
    if component is None:
        return None
    sizes: Counter[str] = Counter()
    for file in sorted(component.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118 - it is no mapping
                    part = weights.get_slice(key)
                    sizes[part.get_dtype()] += math.prod(part.get_shape())
        except (OSError, SafetensorError):
            return None  # the loader gives a better message
    return _STORED.get(sizes.most_common(1)[0][0]) if sizes else None


def only_variant(folder: Path) -> str | None:
    """Return the variant that a folder holds alone, as ``fp16`` of ``model.fp16.safetensors``; None for plain files."""
    found: set[str] = set()
    for component in (path for path in folder.iterdir() if path.is_dir()):
        names = [_VARIANT.fullmatch(file.name) for file in component.glob("*.safetensors")]
        variants = {match["variant"] for match in names if match is not None}
        if variants and None not in variants:
            found |= variants
    return found.pop() if len(found) == 1 else None


def _placeable(index: dict[str, Any]) -> bool:
    """Return whether diffusers takes a device map for the pipeline.

    It takes none where one pipeline stands for several; of code of the model's own that is not known.
    """
    name = index["_class_name"]
    pipeline = getattr(diffusers, name, None) if isinstance(name, str) else None
    return pipeline is not None and not pipeline._load_connected_pipes  # noqa: SLF001 - what diffusers itself asks


def _may_pass(error: Exception) -> bool:
    """Return whether loading may succeed on another try: memory was short, or a device or a disk failed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return not isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError)
    return isinstance(error, RuntimeError) and "CUDA" in str(error)


def _quiet_libraries(settings: Settings) -> None:
    """Keep the libraries' chatter out of the log: it quotes prompts, and comes with handlers of its own."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_default_handler()
        library.enable_propagation()
        if not settings.log_prompts:
            library.set_verbosity_error()
        library.disable_progress_bar()
