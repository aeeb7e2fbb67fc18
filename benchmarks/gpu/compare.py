"""Compares this checkout's engine with another's, by turns on one GPU: images a second of a saturated engine.

    python benchmarks/gpu/compare.py ../before --out dist/compare --architecture sd21 --limit 16 --rounds 2
    python benchmarks/gpu/compare.py ../before --out dist/compare --architecture tiny   # for trying it on a CPU

``../before`` is a checkout of another revision (``git worktree add ../before REVISION``). Each measurement is a process
of its own that runs that checkout's benchmark and worker; both load one model. Nothing is compiled unless told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPEATS = 3
"""Measurements in each process, of which the median counts."""


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the engine of the checkout whose benchmark is on this process's path.

    Returns:
        ``images/s``, the median of ``runs``; ``versions`` of the libraries.
    """
    import time

    import models
    from measure import Measurements

    given.parts = []
    models.save_model(given.folder, given.architecture)
    here = Measurements(given)
    here.warm()
    rates = []
    for _ in range(REPEATS):
        images = models.tasks(2 * given.limit)
        began = time.perf_counter()
        made = models.make(here.engine, images, given.limit)
        rates.append(len(images) / (time.perf_counter() - began))
        if len(made.outcomes) < len(images):
            raise RuntimeError(f"{len(made.outcomes)} of {len(images)} images were made")
    return {
        "images/s": round(statistics.median(rates), 3),
        "runs": [round(rate, 3) for rate in rates],
        "versions": here.found["versions"],
    }


def measured(checkout: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Have a process of a checkout measure, and return what it found."""
    sources = [checkout / "benchmarks" / "gpu", checkout / "worker" / "src", checkout / "resources" / "src"]
    paths = [*map(str, sources), *filter(None, [os.environ.get("PYTHONPATH")])]
    out = given.out / "measured.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-P", __file__, checkout, f"--out={given.out}", f"--architecture={given.architecture}"]
    command += [f"--limit={given.limit}", "--measure", *(["--compiled"] if given.compiled else [])]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="a checkout of another revision")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the results")
    parser.add_argument("--architecture", default="sd21", help="one of models.py")
    parser.add_argument("--limit", type=int, default=16, help="the most images in a batch")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each checkout, by turns")
    parser.add_argument("--compiled", action="store_true", help="have the engines compile first: minutes")
    parser.add_argument("--compile-seconds", type=float, default=600, help="to wait for a batch size to be compiled")
    parser.add_argument("--measure", action="store_true", help="measure once, in this process")
    given = parser.parse_args()
    given.folder = given.out / given.architecture
    given.cache, given.plain = given.out / "cache" / given.other.resolve().name, not given.compiled
    given.out.mkdir(parents=True, exist_ok=True)
    if given.measure:
        (given.out / "measured.json").write_text(json.dumps(measure(given)))
        return
    rates: dict[str, list[float]] = {"this": [], "other": []}
    result = given.out / f"{given.architecture}{'-compiled' if given.compiled else ''}.json"
    for _ in range(given.rounds):
        for name, checkout in (("other", given.other), ("this", HERE.parents[1])):
            found = measured(checkout, given)
            rates[name].append(found["images/s"])
            sys.stdout.write(f"{given.architecture}, {name}: {found['images/s']} images/s, of {found['runs']}\n")
    ratio = statistics.median(rates["this"]) / statistics.median(rates["other"])
    result.write_text(json.dumps({**rates, "ratio": round(ratio, 4), "versions": found["versions"]}, indent=1) + "\n")
    sys.stdout.write(f"{given.architecture}: {ratio:.3f} times the other's images a second\n")


if __name__ == "__main__":
    main()
