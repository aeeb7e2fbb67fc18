"""Measures the step engine with the flow-matching transformers that people serve, and diffusers beside it.

    python benchmarks/gpu/flow.py flux1 --out dist/flow            # one H200: three minutes
    python benchmarks/gpu/flow.py flux1 --out dist/flow --float8   # the same in float8
    python benchmarks/gpu/flow.py tiny-flux --out dist/flow        # for trying this on a CPU; measures nothing

Weights are random and of the true shapes; images are 1024 by 1024 unless told otherwise. What is measured is written to
``OUT/NAME-SIZE.json`` after each part, that of float8 to a file of its own.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import torch
from flow_models import ARCHITECTURES, PROMPT, Architecture
from raw import graphed
from yardsticks import attempt, milliseconds, say

from kubediffusion.resources.runtime import logs
from kubediffusion.worker.engine import ImageId, ImageRequest, SamplingParameters, StepStats
from kubediffusion.worker.engine.adapters import ImageAdapter
from kubediffusion.worker.engine.arrangement import sizes_up_to
from kubediffusion.worker.execution.accelerator import prepare
from kubediffusion.worker.execution.build import info_of
from kubediffusion.worker.execution.compile.blocks import repeated_blocks
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.float8 import use_float8_products
from kubediffusion.worker.families.base import ModelFamily
from kubediffusion.worker.families.registry import family_of
from kubediffusion.worker.images import encode

CUDA = torch.cuda.is_available()
COMPILE_SECONDS = 240.0


class Measurements:
    """What is measured of one model.

    Args:
        name: Of its architecture.
        given: The command's arguments.
    """

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.name = name
        self.given = given
        self.architecture: Architecture = ARCHITECTURES[name]
        self.steps: int = given.steps or self.architecture.steps
        self.found: dict[str, Any] = {"architecture": name, "size": given.size, "torch": torch.__version__}
        began = time.perf_counter()
        self.pipeline = self.architecture.build()
        self.pipeline.set_progress_bar_config(disable=True)
        if CUDA:
            self.pipeline.to("cuda")
            self.found["device"] = torch.cuda.get_device_name()
        self.denoiser: Any = self.pipeline.transformer
        say(f"{name}: built in {time.perf_counter() - began:.0f} s")

    def attempt(self, what: str, part: Callable[[], Any]) -> None:
        """Measure a part, and write down what was found, or what broke it."""
        if self.given.parts and what not in self.given.parts:
            return
        self.found[what] = attempt(f"{self.name} {what}", part)
        kind = "-float8" if self.given.float8 else ""
        place = self.given.out / f"{self.name}{kind}-{self.given.size}.json"
        place.write_text(json.dumps(self.found, indent=1) + "\n")

    def engine_of(self, limit: int) -> ContinuousEngine:
        """Make an engine on the pipeline as it is now, as the worker makes it."""
        family = family_of(self.pipeline)
        if not isinstance(family, ModelFamily):
            raise TypeError(family.reason)
        prepare(self.pipeline)
        compiler = Compiler(None) if CUDA and not self.given.plain else None
        info = replace(info_of(self.pipeline, "random"), name="continuous+compile" if compiler else "continuous")
        engine = ContinuousEngine(self.pipeline, info, family, sizes_up_to(limit, prepared=CUDA), compiler, graphs=CUDA)
        engine.warm_up()
        return engine

    def requests(self, count: int, **shape: Any) -> tuple[ImageRequest, ...]:
        """Return images to make."""
        usual = {"steps": self.steps, "guidance": self.architecture.guidance}
        usual |= {"width": self.given.size, "height": self.given.size}
        sampling = SamplingParameters(**(usual | shape))
        return tuple(
            ImageRequest(ImageId("job", 1, index), PROMPT, self.architecture.negative, index, sampling)
            for index in range(count)
        )

    def measure(self, engine: ContinuousEngine, limit: int) -> None:
        """Measure an engine: what it compiles, a step alone, an image alone, and many."""
        self.attempt("warm", functools.partial(self.warm, engine))
        self.attempt("replays", functools.partial(self.replays, engine))
        self.attempt("alone", functools.partial(self.alone, engine))
        self.attempt("saturated", functools.partial(self.saturated, engine, limit))

    def warm(self, engine: ContinuousEngine) -> dict[str, Any]:
        """Have everything compiled and captured for the size that is measured."""
        if not CUDA:
            return {}
        began = time.perf_counter()
        while True:
            models.prepare_while_idle(engine, COMPILE_SECONDS)
            prepared = self.prepared(engine)
            models.make(engine, self.requests(len(prepared.sizes), steps=2), 1)
            if all(prepared.step_runner.prepare(size) for size in prepared.sizes):
                break
            if time.perf_counter() - began > COMPILE_SECONDS:
                break
            if engine.compiler is not None:
                engine.compiler.wait()
        return {
            "seconds": round(time.perf_counter() - began, 1),
            "captured": {str(size): compiled for size, compiled in prepared.step_runner.captured.items()},
            "reserved GB": round(torch.cuda.memory_reserved() / 1e9, 1),
        }

    def prepared(self, engine: ContinuousEngine) -> Any:
        """Return what is prepared for the images that are measured."""
        return engine.prepared_batches.of(engine.family.batch_key(engine.family.key(self.requests(1)[0])))

    def replays(self, engine: ContinuousEngine) -> dict[str, Any]:
        """Time the graphs alone, and one image's encoding and decoding."""
        if not CUDA:
            return {}
        prepared = self.prepared(engine)
        prepared.batch.fill(0.5)
        graphs = prepared.step_runner._graphs
        found: dict[str, Any] = {f"step {size} ms": milliseconds(graph.replay, 7) for size, graph in graphs.items()}
        request = self.requests(1)[0]
        key = engine.family.key(request)
        found["encode ms"] = milliseconds(lambda: engine.family.encode(request, key), 3)
        decodings = engine.decoder._graphed._graphs
        found |= {f"decode {shape} ms": milliseconds(graph.graph.replay, 5) for shape, graph in decodings.items()}
        return found

    def alone(self, engine: ContinuousEngine) -> dict[str, Any]:
        """Time one image at a time, from its request to the bytes of its PNG."""
        seconds = []
        for turn in range(4):
            began = time.perf_counter()
            (request,) = self.requests(1)
            # A prompt that was not encoded before.
            made = models.make(engine, [replace(request, prompt=f"{PROMPT} {turn}")], 1)
            drawn = time.perf_counter()
            encode(made.outcomes[0], PROMPT, {})
            seconds.append(time.perf_counter() - began)
            encoding = time.perf_counter() - drawn
        return {
            "seconds to PNG": round(statistics.median(seconds[1:]), 3),
            "all": [round(s, 3) for s in seconds],
            "PNG ms": round(encoding * 1e3, 1),
        }

    def saturated(self, engine: ContinuousEngine, limit: int) -> dict[str, Any]:
        """Time images one after the other, or beside each other, from a stock that does not run out."""
        count = max(self.given.images, 2 * limit)
        requests = [replace(request, prompt=f"{PROMPT} #{request.id.index}") for request in self.requests(count)]
        began, watch = time.perf_counter(), TimedWatch(requests[limit:])
        engine.run(tuple(requests[:limit]), watch)
        seconds = time.perf_counter() - began
        pauses = watch.pauses()
        usual = statistics.median(pauses)
        steps = sum(load.images for load in watch.loads)
        return {
            "images": count,
            "images/s": round(count / seconds, 4),
            "image steps/s": round(steps / seconds, 3),
            "median step ms": round(usual * 1e3, 2),
            "stood still": round(1 - usual * len(watch.loads) / seconds, 4),
            "longest pauses ms": [round(pause * 1e3) for pause in sorted(pauses)[-6:]],
            "of steps compiled": round(statistics.mean(load.compiled for load in watch.loads), 3),
        }

    def adapted(self, engine: ContinuousEngine, limit: int) -> dict[str, Any]:
        """Time steps of images each of which has an adapter of its own, beside steps of images without any.

        The adapters are of rank 16, for all large layers of the denoiser.
        """
        from unit.worker import lora_files

        def is_large(name: str) -> bool:
            layer: Any = self.denoiser.get_submodule(name)
            sizes = getattr(layer, "in_features", 0), getattr(layer, "out_features", 0)
            return min(sizes) >= (1024 if CUDA else 1) and "norm" not in name and "blocks" in name

        uses = []
        for seed in range(limit):
            drawn = lora_files.factors(self.denoiser, seed, 16, 0.01, is_large)
            file = lora_files.save(self.given.out / f"{seed}.safetensors", lora_files.weights("transformer", drawn))
            uses.append(ImageAdapter(str(seed), 1.0, engine.read_adapter(file)))
            file.unlink()
        plain = [replace(request, prompt=PROMPT) for request in self.requests(2 * limit, steps=6)]
        asked = [replace(request, adapters=(uses[request.id.index % limit],)) for request in plain]
        found: dict[str, Any] = {"layers": len(drawn)}
        began = time.perf_counter()
        while time.perf_counter() - began < COMPILE_SECONDS:
            made = models.make(engine, asked, limit)
            if not CUDA or all(load.compiled for load in made.loads):
                break
            if engine.compiler is not None:
                engine.compiler.wait()
        found["ready seconds"] = round(time.perf_counter() - began, 1)
        for name, images in (("without", plain), ("with", asked)):
            watch = TimedWatch(images[limit:])
            engine.run(tuple(images[:limit]), watch)
            pauses = watch.pauses()
            found[f"{name}: median step ms"] = round(statistics.median(pauses) * 1e3, 2)
            found[f"{name}: longest step ms"] = round(max(pauses) * 1e3, 2)
        if CUDA:
            steps = self.prepared(engine).step_runner
            modes = {"without": steps, **{f"with ({mode})": other for mode, other in steps.others.items()}}
            found |= {
                f"{name}: step {size} ms": milliseconds(graph.replay, 7)
                for name, of in modes.items()
                for size, graph in of._graphs.items()
            }
        return found

    def eager(self) -> dict[str, Any]:
        """Time diffusers' own call, uncompiled, to the bytes of a PNG."""
        seconds = []
        scale = "true_cfg_scale" if self.name == "qwen" else "guidance_scale"
        arguments: dict[str, Any] = {"num_inference_steps": self.steps, scale: self.architecture.guidance}
        arguments |= {"width": self.given.size, "height": self.given.size}
        if self.architecture.negative is not None:
            arguments["negative_prompt"] = self.architecture.negative
        for turn in range(2):
            began = time.perf_counter()
            self.pipeline(prompt=PROMPT, **arguments).images[0].save(self.given.out / "eager.png")
            seconds.append(round(time.perf_counter() - began, 3))
            say(f"eager {turn}: {seconds[-1]}")
        return {"seconds to PNG": seconds[-1], "all": seconds}

    def attention(self, engine: ContinuousEngine) -> dict[str, Any]:
        """Time one uncompiled step with each of PyTorch's attention kernels."""
        work = self.prepared(engine).batch.input_batch(1)
        found: dict[str, Any] = {}
        for backend in ("native", "_native_cudnn", "_native_flash"):
            try:
                self.denoiser.set_attention_backend(backend)
                found[backend] = milliseconds(lambda: work.function(*work.arguments), 4)
            except Exception as error:  # noqa: BLE001 - not every mask suits every kernel
                found[backend] = f"{type(error).__name__}: {str(error)[:200]}"
        self.denoiser.reset_attention_backend()
        return found

    def by_hand(self, engine: ContinuousEngine) -> dict[str, Any]:
        """Time a step as one writes it by hand: diffusers' repeated blocks compiled, and one CUDA graph."""
        work = self.prepared(engine).batch.input_batch(1)
        began = time.perf_counter()
        self.denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False)
        found: dict[str, Any] = {"compiled ms": milliseconds(lambda: work.function(*work.arguments), 5)}
        found["compile seconds"] = round(time.perf_counter() - began, 1)
        found["graph ms"] = milliseconds(graphed(lambda: work.function(*work.arguments)), 7)
        for block in self.denoiser.modules():
            block._compiled_call_impl = None
        return found

    def float8(self) -> dict[str, Any]:
        """Have the blocks' large layers computed in float8, as ``spec.quantization: float8`` does."""
        from torchao.quantization import Float8WeightOnlyConfig, quantize_

        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        quantize_(self.denoiser, Float8WeightOnlyConfig(set_inductor_config=False))
        layers = use_float8_products(self.denoiser, repeated_blocks(self.denoiser))
        torch.cuda.empty_cache()
        return {
            "layers": layers,
            "GB before": round(before / 1e9, 1),
            "GB after": round(torch.cuda.memory_allocated() / 1e9, 1),
        }


class TimedWatch(models.Watch):
    """A stock of images, and when each step was counted."""

    def __init__(self, stock: Sequence[ImageRequest]) -> None:
        super().__init__(stock)
        self.moments: list[float] = []

    def count_step(self, load: StepStats) -> None:
        """Remember when."""
        super().count_step(load)
        self.moments.append(time.perf_counter())

    def pauses(self) -> list[float]:
        """Return the seconds between each two steps."""
        return [after - before for before, after in itertools.pairwise(self.moments)]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=ARCHITECTURES)
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--size", type=int, default=1024, help="width and height in pixels")
    parser.add_argument("--limit", type=int, default=1, help="the most images in a batch")
    parser.add_argument("--steps", type=int, help="denoising steps; the architecture's own by default")
    parser.add_argument("--images", type=int, default=4, help="images for which the engine is kept busy")
    parser.add_argument("--parts", nargs="*", default=[], help="measure only these")
    parser.add_argument("--float8", action="store_true", help="measure it in float8")
    parser.add_argument("--adapters", action="store_true", help="measure images with adapters too")
    parser.add_argument("--plain", action="store_true", help="compile nothing")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    logs.configure_logging("INFO" if CUDA else "WARNING")
    here = Measurements(given.name, given)
    if given.float8:
        here.attempt("float8", here.float8)
    else:
        here.attempt("eager", here.eager)
    engine = here.engine_of(given.limit)
    here.measure(engine, given.limit)
    if given.adapters:
        here.attempt("adapted", functools.partial(here.adapted, engine, given.limit))
    here.attempt("hand", functools.partial(here.by_hand, engine))
    if not given.float8:
        # Last: PyTorch's choice of kernels is the process's.
        here.attempt("attention", functools.partial(here.attention, engine))


if __name__ == "__main__":
    main()
