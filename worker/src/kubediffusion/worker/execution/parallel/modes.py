"""How ranks share the denoiser's work: by the tokens of an image, or by the two rows of classifier-free guidance."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from torch.distributed.device_mesh import init_device_mesh

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.worker_settings import Parallelism, ParallelMode
from kubediffusion.worker.engine import BadModelError, BatchKey, GuidanceKind
from kubediffusion.worker.execution.facts import kind_of_guidance
from kubediffusion.worker.families.base import Conditioning, ModelFamily, per_image, rows_of
from kubediffusion.worker.families.flow import FlowFamily
from kubediffusion.worker.families.registry import Unsupported
from kubediffusion.worker.loading.device import is_hopper
from kubediffusion.worker.loading.files import DENOISERS
from kubediffusion.worker.loading.placement import plan_of

logger = logging.getLogger(__name__)

FIELD = "spec.workers.parallelism"

_RECOMPILED = 64
"""Shapes for which blocks are compiled; beyond them they run as written."""

Functions = Mapping[str, Callable[..., Any]]
"""What all ranks call, by name."""


def denoiser_of(pipeline: Any) -> Any:
    """Return the denoiser of a pipeline.

    Raises:
        BadModelError: It has none that is known, or several.
    """
    found = [pipeline.components[name] for name in DENOISERS if pipeline.components.get(name) is not None]
    if len(found) != 1:
        raise BadModelError(f"{FIELD}: {type(pipeline).__name__} has {len(found)} denoisers, not one; remove it")
    return found[0]


def check_mode(pipeline: Any, family: ModelFamily | Unsupported, parallelism: Parallelism) -> None:
    """Check that a model can be shared as it asks.

    Raises:
        BadModelError: It cannot.
    """
    name = type(pipeline).__name__
    if plan_of(pipeline).groups_offloaded:
        raise BadModelError(
            f"{FIELD}: each GPU holds the whole denoiser, and this one does not fit; use larger GPUs or quantization, "
            "and leave spec.memory.groupOffload Auto or Never"
        )
    if parallelism.mode is ParallelMode.CFG:
        if isinstance(family, Unsupported):
            raise BadModelError(
                f"{FIELD}.mode cfg: images of {name} run by the pipeline's own call ({family.reason}); remove "
                "parallelism"
            )
        if kind_of_guidance(family) is not GuidanceKind.CFG:
            raise BadModelError(
                f"{FIELD}.mode cfg: this {name} computes no second row, as it is not guided by a negative prompt; "
                "set mode to context, or remove parallelism"
            )
        return
    denoiser = denoiser_of(pipeline)
    guided = not isinstance(family, Unsupported) and kind_of_guidance(family) is GuidanceKind.CFG
    remedy = "set mode to cfg and size to 2, or remove parallelism" if guided else "remove parallelism"
    if getattr(denoiser, "_cp_plan", None) is None:
        raise BadModelError(
            f"{FIELD}.mode context: diffusers does not split the tokens of {type(denoiser).__name__}; {remedy}"
        )
    if not isinstance(family, Unsupported) and not family.calls_denoiser:
        raise BadModelError(
            f"{FIELD}.mode context: the worker calls the modules of {type(denoiser).__name__} one by one, which "
            f"diffusers does not split; {remedy}"
        )
    heads = denoiser.config.get("num_attention_heads")
    if heads is not None and heads % parallelism.size:
        raise BadModelError(
            f"{FIELD}.size: {heads} attention heads cannot be split among {parallelism.size} GPUs; {remedy}"
        )


def shared_functions(
    pipeline: Any, family: ModelFamily | Unsupported, parallelism: Parallelism, rank: int, device: torch.device
) -> Functions:
    """Prepare a rank's part of the work, and return what it calls together with the others.

    Args:
        pipeline: The pipeline, on the rank's device.
        family: Its family.
        parallelism: How the work is shared: see :func:`check_mode`.
        rank: The rank.
        device: The rank's.
    """
    if parallelism.mode is ParallelMode.CFG and not isinstance(family, Unsupported):
        return {"predict": functools.partial(_predict_row, family, rank)}
    denoiser = denoiser_of(pipeline)
    _split_tokens(denoiser, parallelism.size, rank, device)
    return {"forward": denoiser.forward}


def share(
    pipeline: Any, family: ModelFamily | Unsupported, parallelism: Parallelism, functions: Functions, call: Any
) -> None:
    """Have rank 0's pipeline and family make their calls on all ranks.

    Args:
        pipeline: The pipeline.
        family: Its family.
        parallelism: How the work is shared.
        functions: Rank 0's own.
        call: Calls one of them by its name on all ranks.
    """
    if "predict" in functions and not isinstance(family, Unsupported):
        alone = family.predict

        def predict(
            latents: torch.Tensor,
            timesteps: torch.Tensor,
            guidance: torch.Tensor,
            slot: Conditioning,
            shared: Conditioning,
            key: BatchKey,
        ) -> torch.Tensor:
            if rows_of(slot) == 1:
                # Nothing to share: rank 0 computes it, the others wait.
                return alone(latents, timesteps, guidance, slot, shared, key)
            together: torch.Tensor = call("predict", latents, timesteps, guidance, slot, shared, key)
            return together

        family.predict = predict  # type: ignore[method-assign]
        return
    denoiser = denoiser_of(pipeline)

    # Pipelines ask what it takes.
    @functools.wraps(functions["forward"])
    def forward(*args: Any, **kwargs: Any) -> Any:
        return call("forward", *args, **kwargs)

    denoiser.forward = forward
    if isinstance(family, FlowFamily):
        family.check = functools.partial(  # type: ignore[method-assign]
            _check_tokens, family, family.check, parallelism.size
        )


def compile_denoiser(denoiser: Any) -> None:
    """Have a denoiser compiled at its calls, block by block where diffusers knows its blocks.

    Not in the background, as on one device: ranks that run compiled code at different times would wait for each other.
    """
    torch._dynamo.config.recompile_limit = _RECOMPILED  # noqa: SLF001 - the one place where it is set
    if getattr(denoiser, "_repeated_blocks", None):
        denoiser.compile_repeated_blocks(dynamic=False)
    else:
        denoiser.compile(dynamic=False)


def _predict_row(
    family: ModelFamily,
    rank: int,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    guidance: torch.Tensor,
    slot: Conditioning,
    shared: Conditioning,
    key: BatchKey,
) -> torch.Tensor:
    """Predict one of the two rows, and guide by both: see :meth:`ModelFamily.predict`."""
    told = {name: rows[:, rank] for name, rows in slot.items()}
    own = family.denoise(latents.to(family.denoiser_dtype), timesteps, guidance, told, shared, key).contiguous()
    rows = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(rows, own)
    without, given = (row.float() for row in rows)
    return family.guide(without, given, per_image(guidance, given))


def attention_backend(device: torch.device) -> str:
    """Return the attention of diffusers that is the fastest of those that can be split on a CUDA device."""
    return "_native_cudnn" if is_hopper(device) else "native"


def _split_tokens(denoiser: Any, size: int, rank: int, device: torch.device) -> None:
    """Split a transformer's tokens among the ranks by diffusers' own Ulysses attention."""
    if device.type == "cuda":
        denoiser.set_attention_backend(attention_backend(device))
    else:
        # diffusers 0.42 asks for an accelerator's number, and a machine without one has none.
        def resolve(config: ContextParallelConfig) -> ParallelConfig:
            parallel = ParallelConfig(context_parallel_config=config)
            mesh = init_device_mesh("cpu", (1, size), mesh_dim_names=("ring", "ulysses"))
            parallel.setup(rank, size, device, mesh=mesh)
            denoiser._parallel_config = parallel  # noqa: SLF001 - as the method does
            return parallel

        denoiser._resolve_parallel_config = resolve  # noqa: SLF001 - the method that fails
    denoiser.enable_parallelism(config=ContextParallelConfig(ulysses_degree=size))


def _check_tokens(family: FlowFamily, check: Callable[[BatchKey], None], size: int, key: BatchKey) -> None:
    """Refuse images whose tokens cannot be split evenly."""
    check(key)
    height, width = family.grid(key)
    if height * width % size:
        side = family.token_side()
        raise JobFailure(
            ErrorCode.PIPELINE_FAILED,
            f"width and height: {height} times {width} tokens cannot be split among {size} GPUs; make one of them a "
            f"multiple of {side * size}",
        )
