"""Measures the engine, the raw loop and the worker in one process, part by part, each on its own.

    python benchmarks/gpu/measure.py FOLDER OUT [options]

``OUT`` gets a JSON file that is written anew after each part, so that what was measured is there whatever comes after.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jobs
import models
import numpy as np
import pair
import torch
from models import STEPS, make, tasks
from raw import COMPARED, Raw
from yardsticks import attempt, levels_apart, milliseconds, say

from kubediffusion.resources.runtime import logs
from kubediffusion.worker.engine import Engine
from kubediffusion.worker.execution.build import load_engine

CUDA = torch.cuda.is_available()
REPEATS = 3

Found = dict[str, Any]


class Measurements:
    """What is measured in this process.

    Args:
        given: The command's arguments.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.limit: int = given.limit
        self.sizes = [size for size in reversed(COMPARED) if size <= self.limit]
        self.compiled = CUDA and not given.plain
        # With --parts, beside what an earlier run of others found.
        self.found: Found = json.loads(given.out.read_text()) if given.parts and given.out.exists() else {}
        self._runs = 0

    @functools.cached_property
    def engine(self) -> Any:
        """The engine, which begins to compile when it is asked for."""
        settings = models.settings(self.given.folder, compiled=self.compiled, limit=self.limit, cache=self.given.cache)
        engine = load_engine(settings)
        self.found |= {
            "device": engine.info.device,
            "versions": engine.info.versions,
            "compiled": self.compiled,
        }
        return engine

    @property
    def is_comparable(self) -> bool:
        """Whether the raw loop knows the model."""
        return "StableDiffusionPipeline" in (self.given.folder / "model_index.json").read_text()

    def run(self, parts: Sequence[tuple[str, Callable[[], Any]]]) -> None:
        """Measure part by part, until the time is up."""
        ends = time.monotonic() + self.given.seconds
        for name, part in parts:
            if self.given.parts and name not in self.given.parts:
                continue
            if time.monotonic() > ends:
                say(f"no time left for {name}")
                continue
            self.found[name] = attempt(name, part)
            self.given.out.write_text(json.dumps(self.found, indent=1) + "\n")

    def warm(self) -> Found:
        """Have every batch size compiled and captured."""
        began = time.perf_counter()
        done = models.prepare_while_idle(self.engine, self.given.compile_seconds) if CUDA else True
        found: Found = {"all ready": done, "seconds": round(time.perf_counter() - began, 1)}
        make(self.engine, tasks(2 * self.limit), self.limit)
        if not CUDA:
            return found
        return found | {
            "compiled": self.prepared().step_runner.captured,
            "reserved GB": round(torch.cuda.memory_reserved() / 1e9, 2),
            "peak reserved GB": round(torch.cuda.max_memory_reserved() / 1e9, 2),
            "peak allocated GB": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        }

    def prepared(self) -> Any:
        """The engine's batches of each size, with what is captured of them."""
        return self.engine.preparation.prepared

    def replays(self) -> Found:
        """Time the graphs alone: what no engine around them can beat."""
        if not CUDA:
            return {}
        graphs = {f"step {size}": graph for size, graph in self.prepared().step_runner._graphs.items()}
        graphs |= {"decode": next(iter(self.engine.decoder._graphed._graphs.values())).graph}
        encoding = getattr(self.engine.family, "_encoding", None)
        if encoding is not None:
            graphs |= {"encode": next(iter(encoding._graphed._graphs.values())).graph}
        return {name: milliseconds(graph.replay) for name, graph in graphs.items()}

    def raw(self, size: int) -> Found:
        """Measure the raw loop and the engine by turns, at one batch size."""
        loop = Raw(self.engine.pipeline, size, compiled=self.compiled) if CUDA else None
        sizes = self.prepared().sizes if CUDA else ()
        if CUDA:
            # As a worker whose model says maxBatchSize: SIZE.
            self.prepared().sizes = tuple(other for other in sizes if other <= size)
        batches = max(16 // size, 2)
        ours, theirs = [], []
        for turn in range(REPEATS):
            if loop is not None:
                began = time.perf_counter()
                for call in range(batches):
                    loop.run([f"a picture of number {call * size + place} {turn}" for place in range(size)])
                theirs.append(batches * size / (time.perf_counter() - began))
            images = tasks(batches * size)
            began = time.perf_counter()
            make(self.engine, images, size)
            ours.append(len(images) / (time.perf_counter() - began))
        if CUDA:
            self.prepared().sizes = sizes
        return {
            "engine": round(statistics.median(ours), 3),
            "raw": round(statistics.median(theirs), 3) if theirs else None,
            "runs": [[round(x, 3) for x in ours], [round(x, 3) for x in theirs]],
        }

    def eager(self) -> Found:
        """Measure diffusers' own call, on the modules that the engine prepared."""
        static = self.engine.whole_calls
        found = {}
        for size in self.sizes:
            make(static, tasks(size, (2,)), size)
            began = time.perf_counter()
            make(static, tasks(size), size)
            found[str(size)] = round(size / (time.perf_counter() - began), 3)
        return found

    def mixed(self) -> Found:
        """Compare jobs of 10, 25 and 50 steps with jobs of 25, both saturated, in images times steps a second."""
        rates = {}
        for name, steps in (("uniform", (STEPS,)), ("mixed", (10, STEPS, 50))):
            images = tasks(6 * self.limit, steps)
            began = time.perf_counter()
            watch = make(self.engine, images, self.limit)
            rates[name] = sum(task.sampling.steps for task in images) / (time.perf_counter() - began)
            filled = sum(load.images for load in watch.loads) / sum(load.size for load in watch.loads)
            say(f"{name}: {rates[name]:.1f} image steps/s, {filled:.3f} of the slots filled, {len(watch.loads)} steps")
        return {name: round(rate, 2) for name, rate in rates.items()} | {
            "ratio": round(rates["mixed"] / rates["uniform"], 3)
        }

    def same(self) -> Found:
        """Compare pictures: with diffusers' call, and a deterministic one with itself."""
        images = tasks(self.limit)
        batch = make(self.engine, images, self.limit).outcomes
        calls = {task.id.index: make(self.engine.whole_calls, [task], 1).outcomes for task in images[:2]}
        image = tasks(1, deterministic=True)
        first = make(self.engine, image, 1).outcomes[0]
        make(self.engine, tasks(self.limit, (4,)), self.limit)
        alone = make(self.engine, images[:1], 1).outcomes[0]
        return {
            "levels from diffusers' call": [levels_apart(batch[index], made[index]) for index, made in calls.items()],
            "levels from alone": levels_apart(batch[0], alone),
            "deterministic levels": levels_apart(first, make(self.engine, image, 1).outcomes[0]),
            "deterministic levels from the slot": levels_apart(first, batch[0]),
            "spread of values": int(np.ptp(np.frombuffer(batch[0].rgb, np.uint8))),
        }

    def end_to_end(self) -> Found:
        """Saturate the worker: jobs to images in S3."""
        count = 10 * self.limit
        return asyncio.run(self._saturate(count))

    async def _saturate(self, count: int) -> Found:
        self._runs += 1
        async with jobs.worker(self.engine, self.limit, f"saturated-{self._runs}") as bench:
            began = time.monotonic()
            for _ in range(count):
                bench.submit()
            await bench.done()
        stored = sorted(times.stored for times in bench.times.values())
        return {"images": count, "images/s": round(count / (stored[-1] - began), 3)}

    def alone(self) -> Found:
        """Measure one job alone, from the moment that it is there to the bytes of its PNG, and to storage's word."""
        return asyncio.run(self._alone(12))

    async def _alone(self, count: int) -> Found:
        async with jobs.worker(self.engine, self.limit, "alone") as bench:
            for _ in range(count):
                bench.submit()
                await bench.done()
                # So that each comes to an idle engine, as a job does that is alone.
                await asyncio.sleep(0.02)
        times = list(bench.times.values())[2:]
        return {
            "seconds to PNG": round(statistics.median(t.encoded - t.due for t in times), 4),
            "seconds to storage": round(statistics.median(t.stored - t.due for t in times), 4),
        }

    def poisson(self, steps: Sequence[int]) -> Found:
        """Offer jobs at random moments, 70 % of what the worker can do, to slots and to static batches."""
        if "images/s" not in self.found.get("end_to_end", {}):
            raise RuntimeError("what the worker can do is not measured: have --parts name end_to_end too")
        most = self.found["end_to_end"]["images/s"]
        rate = 0.7 * most * STEPS / statistics.mean(steps)
        found: Found = {"jobs/s": round(rate, 3)}
        for kind, engine in (("slots", self.engine), ("static", jobs.StaticBatches(self.engine))):
            waits = asyncio.run(self._offer(engine, f"{kind}-{len(steps)}", rate, steps))
            found[kind] = {
                "p50": round(statistics.median(waits), 3),
                "p95": round(statistics.quantiles(waits, n=20)[-1], 3),
                "jobs": len(waits),
            }
        return found | {
            "ratio": {part: round(found["slots"][part] / found["static"][part], 3) for part in ("p50", "p95")}
        }

    async def _offer(self, engine: Engine, run: str, rate: float, steps: Sequence[int]) -> list[float]:
        chance = random.Random(0)
        async with jobs.worker(engine, self.limit, run) as bench:
            due = time.monotonic()
            ends = due + self.given.poisson_seconds
            while due < ends:
                await asyncio.sleep(max(due - time.monotonic(), 0))
                bench.submit(chance.choice(steps))
                due += chance.expovariate(rate)
            await bench.done()
        return [times.stored - times.due for times in bench.times.values()]

    def plain(self) -> Found:
        """Measure a plain server's way: one image after the other, the model's scheduler, PNG and base64 in line."""
        from diffusers import DiffusionPipeline

        dtype = torch.float16 if CUDA else torch.float32
        pipeline: Any = DiffusionPipeline.from_pretrained(self.given.folder, dtype=dtype)
        pipeline.to("cuda" if CUDA else "cpu")
        pipeline.set_progress_bar_config(disable=True)

        def serve(number: int) -> str:
            image = pipeline(f"a picture of number {number}", num_inference_steps=STEPS).images[0]
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            return base64.b64encode(buffer.getvalue()).decode()

        serve(0)
        began = time.perf_counter()
        count = 5
        for number in range(count):
            serve(number)
        return {"images/s": round(count / (time.perf_counter() - began), 3)}

    def png(self) -> Found:
        """Time what an image costs beside the device."""
        from kubediffusion.worker.images import encode

        picture = make(self.engine, tasks(1), 1).outcomes[0]
        began = time.perf_counter()
        for _ in range(5):
            data = encode(picture, "x", {}).data
        return {"milliseconds": round((time.perf_counter() - began) / 5 * 1e3, 1), "bytes": len(data)}

    def profile(self) -> Found:
        """List the kernels of a step of the largest batch."""
        if not CUDA:
            return {}
        graph = self.prepared().step_runner._graphs[self.limit]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            for _ in range(3):
                graph.replay()
            torch.cuda.synchronize()
        kernels = sorted(seen.key_averages(), key=lambda event: -event.self_device_time_total)
        return {
            event.key[:90]: [round(event.self_device_time_total / 3e3, 3), event.count // 3] for event in kernels[:40]
        }

    def memory_runs_out(self) -> Found:
        """Have the device's memory run out: the batch must get smaller, and every image come out."""
        if not CUDA:
            return {}
        torch.cuda.empty_cache()
        engine: Any = load_engine(
            models.settings(self.given.folder, compiled=False, limit=self.limit, cache=self.given.cache)
        )
        held = torch.cuda.memory_reserved()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min((held + 1.5e9) / total, 1.0))
        try:
            watch = make(engine, tasks(self.limit, (6,)), self.limit)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return {"limits": sorted({load.limit for load in watch.loads}), "images": len(watch.outcomes)}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the model is")
    parser.add_argument("out", type=Path, help="the JSON file")
    parser.add_argument("--s3", type=Path, required=True, help="the program versitygw")
    parser.add_argument("--scratch", type=Path, required=True, help="a new folder for the objects")
    parser.add_argument("--cache", type=Path, required=True, help="folder of what is compiled already")
    parser.add_argument("--limit", type=int, default=16, help="the most images in a batch")
    parser.add_argument("--seconds", type=float, default=1800, help="begin no part after these")
    parser.add_argument("--compile-seconds", type=float, default=300, help="to wait for a batch size to be compiled")
    parser.add_argument("--poisson-seconds", type=float, default=25, help="for which each load is offered")
    parser.add_argument("--plain", action="store_true", help="compile nothing, neither engine nor raw loop")
    parser.add_argument("--parts", nargs="*", default=[], help="measure only these")
    parser.add_argument("--port", type=int, default=jobs.PORT, help="of the S3 server; the next one is the second's")
    parser.add_argument("--second", action="store_true", help="be the second of two workers")
    given = parser.parse_args()
    logs.configure_logging("WARNING")
    here = Measurements(given)
    with jobs.s3_server(given.s3, given.scratch, given.port + given.second):
        if given.second:
            pair.serve_as_the_second(here.engine, here.limit, here.end_to_end)
        else:
            here.run(_parts(here))


def _parts(here: Measurements) -> list[tuple[str, Callable[[], Any]]]:
    """List what is measured, what matters most first."""
    mixed = (10, STEPS, 50)
    raw = [(f"raw {size}", functools.partial(here.raw, size)) for size in here.sizes]
    return [
        ("warm", here.warm),
        ("replays", here.replays),
        ("end_to_end", here.end_to_end),
        ("alone", here.alone),
        ("plain", here.plain),
        *(raw if here.is_comparable else []),
        ("poisson", functools.partial(here.poisson, (STEPS,))),
        ("png", here.png),
        ("pair", functools.partial(pair.saturate_both, here.given, here.end_to_end)),
        ("mixed", here.mixed),
        ("same", here.same),
        ("poisson mixed", functools.partial(here.poisson, mixed)),
        ("memory_runs_out", here.memory_runs_out),
        ("profile", here.profile),
        ("eager", here.eager),
    ]


if __name__ == "__main__":
    main()
