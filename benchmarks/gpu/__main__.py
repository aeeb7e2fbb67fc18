"""Measures the worker on this machine's GPU, everything in one go: several minutes.

    python benchmarks/gpu --out dist/gpu          # results.json, and the table as Markdown
    python benchmarks/gpu --out dist/gpu --plain  # the same with nothing compiled: engine and peer are slower alike
    python benchmarks/gpu --out dist/gpu --architecture sdxl --limit 4
    python benchmarks/gpu --out dist/gpu --architecture tiny   # for trying this on a CPU; measures nothing
    python benchmarks/gpu --out dist/gpu --docs   # and the table into docs/performance.md

Each part is a process of its own with a time limit, so that one that breaks takes nothing with it. To save time the
batch sizes are compiled side by side before anything is measured; what a start costs is measured apart from that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import tables

HERE = Path(__file__).resolve().parent
SIZES = (16, 8, 4, 2, 1)
COMPARED = (16, 8, 1)
COMPARABLE = "sd21"
"""The architecture that the raw loop knows."""
PAGE = HERE.parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- begin gpu -->", "<!-- end gpu -->"


class Run:
    """One run.

    Args:
        given: The command's arguments.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.out: Path = given.out
        self.scratch: Path = given.scratch or self.out / "scratch"
        self.model = self.scratch / "model"
        self.out.mkdir(parents=True, exist_ok=True)
        self.scratch.mkdir(parents=True, exist_ok=True)

    def start(self, script: str, *arguments: object, cache: str, **environment: str) -> subprocess.Popen[str]:
        """Start a part, whose lines go to ours."""
        return subprocess.Popen(
            [sys.executable, HERE / script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **self.environment(),
                "TORCHINDUCTOR_CACHE_DIR": str(self.scratch / cache),
                "TRITON_CACHE_DIR": str(self.scratch / cache / "triton"),
                **environment,
            },
        )

    def environment(self) -> dict[str, str]:
        """Return the environment of every part; bytecode is kept, as the worker's image has that of all libraries."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return kept | {"PYTHONUNBUFFERED": "1", "PYTHONPYCACHEPREFIX": str((self.scratch / "bytecode").resolve())}

    def save_model(self) -> None:
        """Make the model, and import what a worker imports: its bytecode is there before a start is timed."""
        command = [sys.executable, "-c", _SAVE, str(HERE), str(self.model), self.given.architecture]
        subprocess.run(command, check=True, env=self.environment())

    def follow(self, part: subprocess.Popen[str], name: str, seconds: float) -> None:
        """Show a part's lines until it ends or its time is up."""
        timer = threading.Timer(seconds, part.kill)
        timer.start()
        with (self.out / f"{name}.log").open("a") as log:
            for line in part.stdout or ():
                log.write(line)
                log.flush()
                if len(line) < 4000 and not line.startswith(" "):
                    sys.stdout.write(f"{name}: {line}")
                    sys.stdout.flush()
        timer.cancel()

    def precompile(self) -> None:
        """Compile every batch size, each in a process of its own; what is the engine's is kept as workers keep it."""
        sizes = [size for size in SIZES if size <= self.given.limit]
        kinds = [("engine", size) for size in sizes]
        if self.given.architecture == COMPARABLE:
            kinds += [("raw", size) for size in sizes if size in COMPARED]
        # Spread over the GPUs that this command may use.
        devices = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(self.given.devices)))
        names = devices.split(",")
        threads = str(max((os.cpu_count() or 1) // len(kinds), 1))
        followers = []
        for number, (kind, size) in enumerate(kinds):
            part = self.start(
                "precompile.py",
                self.model,
                size,
                self.scratch / "cache-warm",
                kind,
                cache="shared",
                TORCHINDUCTOR_COMPILE_THREADS=threads,
                CUDA_VISIBLE_DEVICES=names[number % len(names)],
            )
            follow = threading.Thread(
                target=self.follow, args=(part, f"precompile-{kind}-{size}", self.given.compile_seconds)
            )
            follow.start()
            followers.append(follow)
        for follower in followers:
            follower.join()

    def starts(self) -> None:
        """Start a worker that finds nothing compiled, then one that finds what another compiled."""
        kinds = (("cold", ("first",), 120), *(() if self.given.plain else (("warm", ("full",), 240),)))
        for name, arguments, seconds in kinds:
            part = self.start(
                "startup.py",
                f"{time.time():.3f}",
                self.model,
                self.scratch / f"cache-{name}",
                self.given.limit,
                *arguments,
                cache=name,
            )
            self.follow(part, f"startup-{name}", seconds)

    def measure(self) -> None:
        """Measure everything else."""
        part = self.start(
            "measure.py",
            self.model,
            self.out / "measured.json",
            f"--cache={self.scratch / 'cache-warm'}",
            f"--s3={self.given.s3}",
            f"--scratch={self.scratch / 's3'}",
            f"--limit={self.given.limit}",
            f"--port={self.given.port}",
            f"--compile-seconds={self.given.compile_seconds}",
            f"--seconds={self.given.seconds}",
            f"--poisson-seconds={self.given.poisson_seconds}",
            *(["--plain"] if self.given.plain else []),
            *(["--parts", *self.given.parts] if self.given.parts else []),
            cache="shared",
        )
        self.follow(part, "measure", self.given.seconds + 60)

    def results(self) -> dict[str, Any]:
        """Gather what the parts found, in this run or in an earlier one whose folders these are."""
        found: dict[str, Any] = {"architecture": self.given.architecture}
        for name in ("cold", "warm"):
            file = self.scratch / f"cache-{name}" / "startup.json"
            if file.exists():
                found[f"{name} start"] = json.loads(file.read_text())
        if (self.out / "measured.json").exists():
            found |= json.loads((self.out / "measured.json").read_text())
        return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--scratch", type=Path, help="folder for model and caches, 20 GB; a folder of --out by default")
    parser.add_argument("--s3", type=Path, help="the program versitygw; by default the one that `make binaries` built")
    parser.add_argument("--port", type=int, default=17070, help="of the S3 server, with the next one free too")
    parser.add_argument("--limit", type=int, default=16, help="the most images in a batch")
    parser.add_argument("--seconds", type=float, default=1800, help="for all that is measured; the rest is left out")
    parser.add_argument("--compile-seconds", type=float, default=900, help="for compiling all batch sizes")
    parser.add_argument("--poisson-seconds", type=float, default=60, help="for which each random load is offered")
    parser.add_argument("--parts", nargs="*", default=[], help="measure only these")
    parser.add_argument("--plain", action="store_true", help="compile nothing: minutes, and slower images")
    parser.add_argument("--no-start", action="store_true", help="do not measure starts")
    parser.add_argument("--no-precompile", action="store_true", help="take what is compiled already from --scratch")
    parser.add_argument("--no-measure", action="store_true", help="compile and measure starts only")
    parser.add_argument("--devices", type=int, default=1, help="GPUs to compile on; two are compared if there are two")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/performance.md")
    parser.add_argument("--architecture", default=COMPARABLE, help="sd21, sdxl, or tiny and tiny-xl for a CPU")
    given = parser.parse_args()
    if given.s3 is None:
        from kubediffusion.local import binaries

        modules = [module for module in binaries.CLUSTER if "versitygw" in module.programs]
        given.s3 = binaries.provide(modules=modules).path("versitygw")
    run = Run(given)
    if not run.model.exists():
        run.save_model()
    if not (given.plain or given.no_precompile):
        run.precompile()
    if not given.no_start:
        run.starts()
    if not given.no_measure:
        run.measure()
    found = run.results()
    (run.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    text = tables.table(found)
    (run.out / "results.md").write_text(text)
    sys.stdout.write(text)
    if given.docs:
        publish(text)


def publish(text: str) -> None:
    """Put the table into its place in ``docs/performance.md``."""
    page = PAGE.read_text()
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(f"{page[:begin]}\n{text}{page[end:]}")


_SAVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import kubediffusion.worker.main
import kubediffusion.worker.execution.build
import models
models.save_model(Path(sys.argv[2]), sys.argv[3])
"""

if __name__ == "__main__":
    main()
