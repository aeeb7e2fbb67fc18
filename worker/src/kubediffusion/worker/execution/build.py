"""Builds the engine that suits the pipeline which a DiffusionModel names."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import diffusers
import torch

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.diffusion_model import JobDefaults
from kubediffusion.worker.compile_cache import CompiledCodeCache, cache_key, store_factory
from kubediffusion.worker.engine import Engine, EngineInfo
from kubediffusion.worker.engine.arrangement import sizes_up_to
from kubediffusion.worker.execution.accelerator import prepare
from kubediffusion.worker.execution.compile.artifacts import Artifacts, Saving
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.compile.functions import code_version
from kubediffusion.worker.execution.continuous import NAME as CONTINUOUS
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.dtypes import dtype_for
from kubediffusion.worker.execution.facts import facts_of
from kubediffusion.worker.execution.float8 import computes_in_float8
from kubediffusion.worker.execution.generic import NAME as STATIC
from kubediffusion.worker.execution.generic import PipelineEngine
from kubediffusion.worker.execution.parallel.engine import Ranks
from kubediffusion.worker.execution.parallel.follower import parallelism_of
from kubediffusion.worker.execution.trial import try_out
from kubediffusion.worker.families.base import ModelFamily
from kubediffusion.worker.families.calls import CallPlan
from kubediffusion.worker.families.registry import Unsupported, family_of
from kubediffusion.worker.loading.device import choose_device
from kubediffusion.worker.loading.fetch import fetch_from_any_source
from kubediffusion.worker.loading.files import DENOISERS
from kubediffusion.worker.loading.placement import plan_of
from kubediffusion.worker.loading.quantization import quantized_components
from kubediffusion.worker.loading.weights import load_pipeline
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel
from kubediffusion.worker.stages import OnStage, ignore_stage

logger = logging.getLogger(__name__)

VERSIONED = ("torch", "diffusers", "transformers", "kubediffusion-worker")
"""Packages whose version decides pixels."""


def _exit(_reason: str) -> None:
    os._exit(1)


def load_engine(
    settings: Settings,
    on_stage: OnStage = ignore_stage,
    prefetched: Future[LocalModel] | None = None,
    end: Callable[[str], object] = _exit,
) -> Engine:
    """Load the model, once, and choose the engine that suits its pipeline.

    Args:
        settings: What to load, and how.
        on_stage: Called with each stage of the start, and later with how far the background compilation has come.
        prefetched: The model, where it is being fetched already.
        end: Ends the process with a reason, from another thread than the engine's, which waits for a rank that is lost.

    Raises:
        BadModelError: It cannot be loaded, and a restart would not change that.
        Exception: It cannot be loaded now.
    """
    device = choose_device(settings)
    with contextlib.ExitStack() as unless_loaded:
        ranks = None
        if settings.spec.workers.shared is not None:
            ranks = Ranks(settings, device, end)
            unless_loaded.callback(ranks.close)
            # The others take it from where this process has put it.
            prefetched = ranks.load(prefetched or ThreadPoolExecutor(1).submit(fetch_from_any_source, settings))
        engine = _load(settings, device, on_stage, prefetched, ranks)
        unless_loaded.pop_all()
    return engine


def _load(
    settings: Settings,
    device: torch.device,
    on_stage: OnStage,
    prefetched: Future[LocalModel] | None,
    ranks: Ranks | None,
) -> Engine:
    def choose_dtype(index: dict[str, Any], stored: torch.dtype | None) -> torch.dtype:
        # Before the weights are read: a class that makes no images from text says so itself.
        if isinstance(index["_class_name"], str):
            CallPlan.of(getattr(diffusers, index["_class_name"]))
        return dtype_for(settings.spec.torch_dtype, index, device, stored)

    pipeline, revision = load_pipeline(settings, device, choose_dtype, on_stage, prefetched)
    info = info_of(pipeline, revision)
    family = _family(pipeline)
    facts = facts_of(pipeline, None if isinstance(family, Unsupported) else family)
    if ranks is not None:
        ranks.check(pipeline, family)
        facts = facts.model_copy(update={"adapters": False})
    engine = _choose_engine(pipeline, replace(info, facts=facts), family, settings, on_stage, ranks)
    logger.info("pipeline loaded: %s", info.pipeline, extra={"engine": engine.info.name, "device": info.device})
    cuda = device.type == "cuda"
    graphs = isinstance(engine, ContinuousEngine) and engine.graphs
    if not graphs or settings.spec.defaults != JobDefaults():
        # On a CPU too: nothing else tells whether the model makes an image of a text alone.
        on_stage(EngineReason.WARMING_UP, "the weights are loaded; the first image is made")
        try_out(engine, settings.spec, small=not cuda)
    if isinstance(engine, ContinuousEngine):
        engine.warm_up(on_stage)
    return engine


def _choose_engine(
    pipeline: Any,
    info: EngineInfo,
    family: ModelFamily | Unsupported,
    settings: Settings,
    on_stage: OnStage,
    ranks: Ranks | None,
) -> Engine:
    """Make the engine for a pipeline that is loaded, and tell what it does less well than the model asks."""
    spec, cuda = settings.spec, pipeline.device.type == "cuda"
    # Weights in float8 that are multiplied as they are held are captured and compiled like any others.
    multiplied = ranks is None and not isinstance(family, Unsupported) and computes_in_float8(pipeline)
    quantized = any(name in DENOISERS for name in info.quantization) and not multiplied
    uncompiled = _why_uncompiled(pipeline, info, quantized=quantized)
    compiled = spec.compile and uncompiled is None
    _tell_less(pipeline, family, settings, on_stage, uncompiled)
    if ranks is not None:
        return _shared_engine(pipeline, info, family, settings, ranks, compiled=compiled, quantized=quantized)
    cache = _cache(settings, info, pipeline.device) if compiled else None
    if isinstance(family, Unsupported):
        logger.info("images run by the pipeline's own call: %s", family.reason)
        if compiled:
            _compile(pipeline)
        engine = PipelineEngine(pipeline, _named(info, STATIC, compiled=compiled), adapter_rank=settings.adapter_rank)
        if cache is None:
            return engine
        artifacts = Artifacts(cache)
        artifacts.load()
        return Saving(engine, artifacts)
    compiler = None
    if compiled and cuda:
        compiler = Compiler(cache, on_stage=on_stage)
    elif compiled:
        _compile(pipeline)
    # What is quantized runs as it was loaded: its kernels fuse with no others, and not all of them can be captured.
    graphs = cuda and not quantized
    if not quantized:
        prepare(pipeline)
    # Of few sizes, each is captured as a graph where there are graphs.
    sizes = sizes_up_to(spec.workers.max_batch_size, prepared=graphs)
    return ContinuousEngine(
        pipeline,
        _named(info, CONTINUOUS, compiled=compiled),
        family,
        sizes,
        compiler,
        graphs=graphs,
        adapter_rank=settings.adapter_rank,
    )


def _tell_less(
    pipeline: Any, family: ModelFamily | Unsupported, settings: Settings, on_stage: OnStage, uncompiled: str | None
) -> None:
    """Tell what the engine does less well than the model asks."""
    spec = settings.spec
    less = []
    if isinstance(family, Unsupported) and family.known:
        less.append(f"by the pipeline's own call: {family.reason}")
    if spec.compile and uncompiled is not None:
        less.append(f"uncompiled: {uncompiled}")
        logger.warning("spec.compile is not followed: %s", uncompiled)
    less += plan_of(pipeline).measures
    if less:
        on_stage(EngineReason.READY, f"the worker takes jobs, {'; '.join(less)}")


def _shared_engine(
    pipeline: Any,
    info: EngineInfo,
    family: ModelFamily | Unsupported,
    settings: Settings,
    ranks: Ranks,
    *,
    compiled: bool,
    quantized: bool,
) -> Engine:
    """Make the engine whose denoiser is called by several ranks: its calls are captured and compiled, not its steps."""
    shared = parallelism_of(settings)
    cuda = pipeline.device.type == "cuda"
    if compiled and settings.spec.compile_cache is not None:
        logger.warning("spec.compileCache is not used: each rank compiles for itself")
    if not quantized:
        prepare(pipeline)
    name = CONTINUOUS if not isinstance(family, Unsupported) else STATIC
    info = _named(info, f"{name}+{shared.mode}{shared.size}", compiled=compiled)
    engine: Engine
    if isinstance(family, Unsupported):
        engine = PipelineEngine(pipeline, info, adapter_rank=settings.adapter_rank)
    else:
        sizes = sizes_up_to(settings.spec.workers.max_batch_size, prepared=cuda)
        engine = ContinuousEngine(pipeline, info, family, sizes, graphs=False, adapter_rank=settings.adapter_rank)
    return ranks.share(engine, pipeline, family, compiled=compiled, graphed=cuda and not quantized, fused=not quantized)


def _family(pipeline: Any) -> ModelFamily | Unsupported:
    """Return the family of a pipeline that can be stepped where its weights are."""
    family = family_of(pipeline)
    if not isinstance(family, Unsupported) and plan_of(pipeline).groups_offloaded:
        return Unsupported("the denoiser's blocks come from main memory in each step", known=True)
    return family


def _why_uncompiled(pipeline: Any, info: EngineInfo, *, quantized: bool) -> str | None:
    """Say why a pipeline cannot be compiled as it was loaded; None when it can."""
    for name, method in info.quantization.items():
        if quantized and name in DENOISERS:
            return f"a {name} in {method} is not compiled"
    if plan_of(pipeline).groups_offloaded:
        return "blocks that come from main memory are not compiled"
    return None


def info_of(pipeline: Any, revision: str) -> EngineInfo:
    """Say what a pipeline is, for the recipe.

    Args:
        pipeline: The pipeline, on its device.
        revision: Commit or content hash of the model.
    """
    device = pipeline.device
    return EngineInfo(
        name=STATIC,
        pipeline=type(pipeline).__name__,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        torch_dtype=str(pipeline.dtype).removeprefix("torch."),
        revision=revision,
        quantization=quantized_components(pipeline),
        memory=plan_of(pipeline).fields,
        versions={name: importlib.metadata.version(name) for name in VERSIONED},
    )


def _named(info: EngineInfo, engine: str, *, compiled: bool) -> EngineInfo:
    return replace(info, name=f"{engine}+compile" if compiled else engine)


def _cache(settings: Settings, info: EngineInfo, device: torch.device) -> CompiledCodeCache | None:
    """Return the cache of the code that earlier workers compiled; None where the model names no place for it.

    None on the CPU too: its code fits one kind of processor only.
    """
    place = store_factory(settings)
    if device.type != "cuda":
        if settings.spec.compile_cache is not None:
            logger.warning("spec.compileCache is not used: code for the CPU is for one kind of processor only")
        return None
    if place is None:
        return None
    made_by = {"torch": torch.__version__, "triton": _version("triton"), "python": platform.python_version()}
    # The worker's version changes with its releases, its code on the way there too.
    made_by["kubediffusion-worker"] = f"{info.versions['kubediffusion-worker']}-{code_version()}"
    name = cache_key(info.revision, info.device, info.torch_dtype, info.versions | made_by)
    return CompiledCodeCache(place, name)


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
