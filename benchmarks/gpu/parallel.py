"""Measures a step of FLUX.1 on one GPU, and on several that share it: random weights of the true shape, in bfloat16.

    python benchmarks/gpu/parallel.py                  # two GPUs of one host; some minutes, most of which compile
    python benchmarks/gpu/parallel.py --mode cfg       # the same shape, guided by two rows, one on each GPU
    python benchmarks/gpu/parallel.py --tiny           # for trying this on a CPU; measures nothing

Both are the engine's own code: slots, the denoiser's blocks compiled, CUDA graphs. What a step gives is compared too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from kubediffusion.worker.engine import BatchKey, GuidanceKind
from kubediffusion.worker.execution.parallel.engine import Ranks
from kubediffusion.worker.execution.parallel.follower import Follower, follow
from kubediffusion.worker.execution.parallel.modes import attention_backend, compile_denoiser
from kubediffusion.worker.execution.parallel.processes import RankSettings, end_with_parent
from kubediffusion.worker.execution.slots import SlotTensors, control_row, first_row
from kubediffusion.worker.execution.stepping import CudaGraphManager, EagerStepRunner, StepRunner
from kubediffusion.worker.families.base import noise
from kubediffusion.worker.families.flux import TOKENS, Flux
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.sources import LocalModel

_TINY: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}


@dataclass(frozen=True)
class Shape:
    """What is measured.

    Attributes:
        tiny: Whether the transformer is a tiny one.
        mode: How GPUs share it.
        side: Width and height in pixels.
        images: Images of the batch.
        compiled: Whether blocks are compiled.
    """

    tiny: bool
    mode: str
    side: int
    images: int
    compiled: bool


def make_pipeline(shape: Shape, device: torch.device) -> Any:
    """Make FLUX.1's transformer on a device, with the same weights each time, in a pipeline that has nothing else."""
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device.type == "cpu" else torch.bfloat16)
    try:
        with device:
            config = _TINY if shape.tiny else {}
            transformer = FluxTransformer2DModel(guidance_embeds=shape.mode != "cfg", **config)
    finally:
        torch.set_default_dtype(usual)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return FluxPipeline(scheduler=scheduler, transformer=transformer.eval().requires_grad_(False), **parts)


def make_slots(shape: Shape, family: Flux) -> SlotTensors:
    """Make a batch whose slots are all taken."""
    guided = shape.mode == "cfg"
    kind = GuidanceKind.CFG if guided else GuidanceKind.EMBEDDED
    key = BatchKey(width=shape.side, height=shape.side, guidance=kind, deterministic=False)
    config, rows, device = family.denoiser.config, 1 + guided, family.device
    height, width = family.grid(key)
    drawn = torch.Generator("cpu").manual_seed(1)
    widths = {"prompts": (TOKENS, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}
    told = {
        name: torch.randn((rows, *size), generator=drawn).to(device, family.denoiser_dtype)
        for name, size in widths.items()
    }
    latents = family.packed(noise((config.in_channels // 4, 2 * height, 2 * width), 0, torch.float32))
    row = first_row(latents.to(device), told)
    slots = SlotTensors(family, key, shape.images, row)
    for slot in range(shape.images):
        slots.enter(slot, row)
    # A step of half the way that changes the latents by the model's output alone.
    control = control_row(_Midway(), 0, 3.5)  # type: ignore[arg-type]
    slots.steer(dict.fromkeys(range(shape.images), control), shape.images)
    return slots


class _Midway:
    """Coefficients of one Euler step in the middle of a schedule."""

    timesteps = (500.0,)
    scales = (1.0,)

    @property
    def weights(self) -> torch.Tensor:
        from kubediffusion.worker.execution.coefficients import DEPTH

        weights = torch.zeros(1, 2 * DEPTH)
        weights[0, 0], weights[0, DEPTH] = 1.0, -0.04
        return weights


def measure(runner: StepRunner, slots: SlotTensors, shape: Shape, steps: int) -> tuple[float, torch.Tensor]:
    """Return what a step takes, in milliseconds, and the latents after the first one."""
    runner.run(shape.images)
    first = slots.latents(0).float().cpu()
    taken = []
    for _ in range(3):
        runner.run(shape.images)
    for _ in range(steps):
        _wait(slots.device)
        began = time.perf_counter()
        runner.run(shape.images)
        _wait(slots.device)
        taken.append(1e3 * (time.perf_counter() - began))
    # As an image is made: the host does not wait for each step.
    began = time.perf_counter()
    for _ in range(steps):
        runner.run(shape.images)
    _wait(slots.device)
    _say(f"  {steps} steps one after the other: {time.perf_counter() - began:.3f} s")
    return statistics.median(taken), first


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alone(shape: Shape, device: torch.device, steps: int) -> tuple[float, torch.Tensor]:
    """Measure one GPU."""
    pipeline = make_pipeline(shape, device)
    family = Flux(pipeline)
    if device.type == "cuda" and shape.mode == "context":
        # As the ranks have it on this kind of device.
        pipeline.transformer.set_attention_backend(attention_backend(device))
    if shape.compiled:
        compile_denoiser(pipeline.transformer)
    slots = make_slots(shape, family)
    runner: StepRunner = CudaGraphManager(slots, None) if device.type == "cuda" else EagerStepRunner(slots)
    return measure(runner, slots, shape, steps)


class RandomFollower(Follower):
    """Another rank, whose weights are made and not read."""

    def load(self, _model: LocalModel) -> None:
        """Make the weights."""
        self.pipeline = make_pipeline(Shape(**json.loads(os.environ[_SHAPE])), self.device)


_SHAPE = "KUBEDIFFUSION_BENCHMARK_SHAPE"


def follow_random(rank: int, pipe: Connection, given: RankSettings) -> None:
    """Run another rank."""
    end_with_parent()
    follow(rank, pipe, given, RandomFollower)


def together(shape: Shape, device: torch.device, size: int, steps: int) -> tuple[float, torch.Tensor]:
    """Measure GPUs that share each step."""
    os.environ[_SHAPE] = json.dumps(vars(shape))
    settings = Settings(
        pod_name="benchmark",
        pod_namespace="benchmark",
        model_name="flux",
        bucket="none",
        spec={"source": {"path": "/"}, "workers": {"parallelism": {"mode": shape.mode, "size": size}}},
    )
    ranks = Ranks(settings, device, lambda _reason: os._exit(1), follow_random)
    try:
        made: Future[LocalModel] = Future()
        made.set_result(LocalModel(Path("/"), "random"))
        ranks.load(made)
        pipeline = make_pipeline(shape, device)
        family = Flux(pipeline)
        graphed = device.type == "cuda"
        ranks.check(pipeline, family)
        ranks.share(_NOTHING, pipeline, family, compiled=shape.compiled, graphed=graphed, fused=False)
        slots = make_slots(shape, family)
        return measure(EagerStepRunner(slots), slots, shape, steps)
    finally:
        ranks.close()


_NOTHING: Any = None
"""There is no engine: steps are made without one."""


def main() -> None:
    """Measure, and print what each takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2, choices=(2, 4, 8), help="GPUs that share a step")
    parser.add_argument("--mode", default="context", choices=("context", "cfg"))
    parser.add_argument("--side", type=int, default=1024, help="width and height in pixels")
    parser.add_argument("--images", type=int, default=1, help="images of the batch")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--plain", action="store_true", help="compile nothing")
    parser.add_argument("--tiny", action="store_true", help="a tiny transformer, on the CPU")
    given = parser.parse_args()
    shape = Shape(given.tiny, given.mode, given.side if not given.tiny else 64, given.images, not given.plain)
    shape = replace(shape, compiled=False) if given.tiny else shape
    device = torch.device("cpu") if given.tiny else torch.device("cuda", 0)
    if not given.tiny:
        torch.cuda.set_device(device)
    parts = {1: partial(alone, shape, device, given.steps)}
    parts[given.devices] = partial(together, shape, device, given.devices, given.steps)
    found: dict[int, tuple[float, torch.Tensor]] = {}
    with torch.inference_mode():
        for size, part in parts.items():
            began = time.perf_counter()
            found[size] = part()
            _say(f"{size} GPU: {found[size][0]:.2f} ms a step (all in {time.perf_counter() - began:.0f} s)")
            gc.collect()
            torch._dynamo.reset()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    (one, first), (several, second) = found.values()
    far = float((first - second).abs().max() / first.abs().max())
    ratio = {"faster": one / several, "apart": far}
    _say(json.dumps({"mode": given.mode, "1": one, str(given.devices): several, **ratio}))


if __name__ == "__main__":
    main()
