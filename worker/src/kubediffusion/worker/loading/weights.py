"""Loads the pipeline that a DiffusionModel names to its device. Knows no engine and no family."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils.import_utils import DummyObject

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.model_source import ModelSource
from kubediffusion.worker.cpus import usable_cpus
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.loading.components import Target, load_checkpoint, load_components, quantization_of
from kubediffusion.worker.loading.device import DeviceMemory, device_memory
from kubediffusion.worker.loading.fetch import fetch_from_any_source
from kubediffusion.worker.loading.files import choose_variant, components_of, stored_dtype
from kubediffusion.worker.loading.memory_needs import memory_needs
from kubediffusion.worker.loading.memory_plan import MemoryPlan, MemoryShortError, plan_memory
from kubediffusion.worker.loading.placement import place
from kubediffusion.worker.loading.quantization import Quantizer
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel, check_model
from kubediffusion.worker.stages import OnStage, ignore_stage

ChooseDtype = Callable[[dict[str, Any], torch.dtype | None], torch.dtype]
"""Chooses the numbers that weights are held in, by the model's ``model_index.json`` and those that the denoiser's are
stored in."""


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
    index = check_model(model, settings.spec)
    check_class(index)
    dtype = choose_dtype(index, stored_dtype(model))
    target = Target(model, index, settings.spec, dtype, device, Quantizer(settings.spec, index, dtype, device))
    plan = choose_plan(target, device_memory(device, settings.spec.memory.device_mib))
    where = "GPU" if device.type == "cuda" else "CPU"
    on_stage(EngineReason.LOADING_WEIGHTS, "; ".join([f"the weights go to the {where}", *plan.measures]))
    return load_weights(target, plan), model.revision


def choose_plan(target: Target, memory: DeviceMemory) -> MemoryPlan:
    """Decide what stays off the device.

    Args:
        target: What is loaded, and as what.
        memory: What the model may take of the device.

    Raises:
        BadModelError: The model does not fit the device.
        MemoryShortError: It would, if others took nothing of its memory.
    """
    settings, needs = target.spec.memory, memory_needs(target)
    try:
        return plan_memory(needs, memory.free, settings)
    except MemoryShortError as error:
        try:
            plan_memory(needs, memory.total, settings)
        except MemoryShortError:
            raise BadModelError(f"spec.memory: {error}") from None
        raise


def _origin(source: ModelSource) -> str:
    """Say where a model comes from, for people."""
    if source.hugging_face is not None:
        return f"{source.hugging_face.repository} of the Hugging Face Hub"
    if source.s3 is not None:
        return source.s3.uri
    return "a folder"


def load_weights(target: Target, plan: MemoryPlan) -> Any:
    """Load the pipeline.

    Its weights are read straight to the device, and main memory holds one tensor of them at a time; where the plan
    keeps some there, all of them are read to it first.

    Args:
        target: What is loaded, and as what.
        plan: What stays off the device.

    Raises:
        BadModelError: It cannot be loaded, and a restart would not change that.
        Exception: It cannot be loaded now.
    """
    device, spec, index = target.device, target.spec, target.index
    if plan.offloads:
        target = replace(target, device=torch.device("cpu"))
    # What was left out when the model was saved; the pipelines ask for it all the same.
    parts: dict[str, Any] = {name: None for name, value in index.items() if value == [None, None]}
    if not spec.safety_checker and "safety_checker" in index:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        parts |= load_components(target)
        if target.model.checkpoint is not None:
            return place(load_checkpoint(target.model.checkpoint, target, parts), plan, device)
        folder = target.model.folder
        pipeline = DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            str(folder),
            dtype=target.dtype,
            # A map to one device places weights while they are read and leaves no hooks of accelerate on the modules.
            device_map=target.device.type if _placeable(index) else None,
            variant=choose_variant(spec.source, components_of(folder), "spec.source"),
            use_safetensors=True if spec.use_safetensors else None,
            trust_remote_code=spec.trust_remote_code,
            local_files_only=True,
            quantization_config=quantization_of(target, parts.keys()),
            **parts,
        )
        # Parts that are no models of diffusers or transformers know no map.
        return place(pipeline, plan, device)
    except BadModelError:
        raise
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
