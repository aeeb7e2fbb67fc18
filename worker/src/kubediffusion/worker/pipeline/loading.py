"""Loads the pipeline that a DiffusionModel names and makes it an engine."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.diffusion_model import DiffusionModelSpec, ModelSource, TorchDtype
from kubediffusion.worker.calls import CallPlan
from kubediffusion.worker.compiled import CompileCache, folder_name, place_of
from kubediffusion.worker.cpus import usable_cpus
from kubediffusion.worker.engine import BadModelError, Engine, EngineInfo
from kubediffusion.worker.fetching import fetch_model
from kubediffusion.worker.pipeline import hub
from kubediffusion.worker.pipeline.accelerator import prepare
from kubediffusion.worker.pipeline.artifacts import Artifacts, Saving
from kubediffusion.worker.pipeline.compiling import Compiler
from kubediffusion.worker.pipeline.continuous import NAME as CONTINUOUS
from kubediffusion.worker.pipeline.continuous import ContinuousEngine
from kubediffusion.worker.pipeline.engine import NAME as STATIC
from kubediffusion.worker.pipeline.engine import PipelineEngine, warm_up
from kubediffusion.worker.pipeline.families import family_of
from kubediffusion.worker.pipeline.functions import code_version
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel, check_folder
from kubediffusion.worker.stages import OnStage, ignore_stage

logger = logging.getLogger(__name__)

VERSIONED = ("torch", "diffusers", "transformers", "kubediffusion-worker")
"""Packages whose version decides pixels."""

_DTYPES = {
    TorchDtype.FLOAT32: torch.float32,
    TorchDtype.FLOAT16: torch.float16,
    TorchDtype.BFLOAT16: torch.bfloat16,
}


def load_engine(
    settings: Settings, progress: OnStage = ignore_stage, model: Future[LocalModel] | None = None
) -> Engine:
    """Load the model, once, and choose the engine that suits its pipeline.

    Args:
        settings: What to load, and how.
        progress: Told where it stands, and later how far the background compilation has come.
        model: The model, where it is being brought to this machine already.

    Raises:
        BadModelError: It cannot be loaded, and a restart would not change that.
        Exception: It cannot be loaded now.
    """
    pipeline, info = load_pipeline(settings, progress, model)
    family = family_of(pipeline)
    cache = _cache(settings, info, pipeline.device) if settings.spec.compile else None
    engine: Engine
    if family is None:
        if settings.spec.compile:
            _compile(pipeline)
        engine = PipelineEngine(pipeline, _named(info, STATIC, settings.spec))
        if cache is not None:
            artifacts = Artifacts(cache)
            artifacts.load()
            engine = Saving(engine, artifacts)
    else:
        prepare(pipeline)
        compiler = None
        if settings.spec.compile and pipeline.device.type == "cuda":
            compiler = Compiler(cache, progress=progress)
        elif settings.spec.compile:
            _compile(pipeline)
        named = _named(info, CONTINUOUS, settings.spec)
        engine = ContinuousEngine(pipeline, named, family, settings.spec.workers.max_batch_size, compiler)
    logger.info("pipeline loaded: %s", info.pipeline, extra={"engine": engine.info.name, "device": info.device})
    if isinstance(engine, ContinuousEngine):
        engine.warm_up(progress)
    elif pipeline.device.type == "cuda":
        progress(EngineReason.WARMING_UP, "the weights are on the device; the first image is made")
        warm_up(engine)
    return engine


def load_pipeline(
    settings: Settings, progress: OnStage = ignore_stage, coming: Future[LocalModel] | None = None
) -> tuple[Any, EngineInfo]:
    """Load the pipeline to its device, and say what it is; the engine is not chosen yet.

    Args:
        settings: What to load, and how.
        progress: Told where it stands.
        coming: The model, where it is being brought to this machine already.

    Raises:
        BadModelError: It cannot be loaded, and a restart would not change that.
        Exception: It cannot be loaded now.
    """
    _quiet_libraries(settings)
    torch.set_num_threads(settings.torch_threads or usable_cpus())
    progress(EngineReason.FETCHING_MODEL, f"the model's files come from {_origin(settings.spec.source)}")
    model = coming.result() if coming is not None else locate(settings)
    index = check_folder(model.folder, settings.spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(settings.spec.torch_dtype, device)
    progress(EngineReason.LOADING_WEIGHTS, f"the weights go to the {'GPU' if device.type == 'cuda' else 'CPU'}")
    pipeline = load_weights(model.folder, index, settings.spec, dtype, device)
    CallPlan.of(type(pipeline))
    return pipeline, EngineInfo(
        name=STATIC,
        pipeline=type(pipeline).__name__,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        torch_dtype=str(dtype).removeprefix("torch."),
        revision=model.revision,
        versions={name: importlib.metadata.version(name) for name in VERSIONED},
    )


def _origin(source: ModelSource) -> str:
    """Say where a model comes from, for people."""
    if source.hugging_face is not None:
        return f"{source.hugging_face.repository} of the Hugging Face Hub"
    if source.s3 is not None:
        return source.s3.uri
    return "a folder"


def _named(info: EngineInfo, engine: str, spec: DiffusionModelSpec) -> EngineInfo:
    return replace(info, name=f"{engine}+compile" if spec.compile else engine)


def locate(settings: Settings) -> LocalModel:
    """Bring the model to this machine.

    Raises:
        BadModelError: There is no such model.
    """
    source = settings.spec.source
    if source.hugging_face is not None:
        token = settings.hf_token.get_secret_value() if settings.hf_token is not None else ""
        folder, commit = hub.fetch(source.hugging_face, settings.spec, token or None)
        return LocalModel(folder, commit)
    return fetch_model(settings)


def load_weights(
    folder: Path, index: dict[str, Any], spec: DiffusionModelSpec, dtype: torch.dtype, device: torch.device
) -> Any:
    """Give the pipeline, its weights read straight to the device: main memory holds one tensor of them at a time.

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
    if not spec.safety_checker and "safety_checker" in index:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    if spec.source.hugging_face is not None and spec.source.hugging_face.variant is not None:
        options["variant"] = spec.source.hugging_face.variant
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


def _placeable(index: dict[str, Any]) -> bool:
    """Tell whether diffusers takes a device map for the pipeline.

    It takes none where one pipeline stands for several; of code of the model's own that is not known.
    """
    name = index["_class_name"]
    pipeline = getattr(diffusers, name, None) if isinstance(name, str) else None
    return pipeline is not None and not pipeline._load_connected_pipes  # noqa: SLF001 - what diffusers itself asks


def _may_pass(error: Exception) -> bool:
    """Tell whether loading may work on another try: no memory now, a device or disk in trouble."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return not isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError)
    return isinstance(error, RuntimeError) and "CUDA" in str(error)


def _dtype(wish: TorchDtype, device: torch.device) -> torch.dtype:
    if wish is TorchDtype.AUTO:
        return torch.float16 if device.type == "cuda" else torch.float32
    return _DTYPES[wish]


def _cache(settings: Settings, info: EngineInfo, device: torch.device) -> CompileCache | None:
    """Give what earlier workers compiled, where the model names a place for it.

    None on the CPU too, whose code fits one kind of processor only.
    """
    place = place_of(settings)
    if device.type != "cuda":
        if settings.spec.compile_cache is not None:
            logger.warning("spec.compileCache is not used: code for the CPU is for one kind of processor only")
        return None
    if place is None:
        return None
    made_by = {"torch": torch.__version__, "triton": _version("triton"), "python": platform.python_version()}
    # The worker's version changes with its releases, its code on the way there too.
    made_by["kubediffusion-worker"] = f"{info.versions['kubediffusion-worker']}-{code_version()}"
    name = folder_name(info.revision, info.device, info.torch_dtype, info.versions | made_by)
    return CompileCache(place, name)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _compile(pipeline: Any) -> None:
    for name in ("unet", "transformer"):
        denoiser = getattr(pipeline, name, None)
        if denoiser is not None:
            denoiser.compile(dynamic=False)


def _quiet_libraries(settings: Settings) -> None:
    """Keep the libraries' chatter out of the log: it quotes prompts, and comes with handlers of its own."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_default_handler()
        library.enable_propagation()
        if not settings.log_prompts:
            library.set_verbosity_error()
        library.disable_progress_bar()
