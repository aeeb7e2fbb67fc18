"""Plots of the results, where matplotlib is installed; ``make bench`` sees to that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubediffusion.benchmarks.latency import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Any]

QUEUE_SECONDS = 1.0
"""A median above that is of a queue that grows: jobs came faster than they were done."""


def draw(results: Mapping[str, Found], folder: Path) -> None:
    """Draw each suite that has a plot as ``performance-<suite>.svg``."""
    if find_spec("matplotlib") is None:
        sys.stderr.write("No plots: matplotlib is not installed.\n")
        return
    import matplotlib as mpl

    mpl.use("svg")
    # The same results give the same file, and text stays text.
    mpl.rcParams.update({"svg.hashsalt": "kubediffusion", "svg.fonttype": "none", "axes.grid": True})
    from matplotlib import pyplot as plt

    for name, plot in PLOTS.items():
        if name in results:
            figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
            plot(results[name], axes)
            figure.savefig(folder / f"performance-{name}.svg", metadata={"Date": None})
            plt.close(figure)


def latency(found: Found, axes: Axes) -> None:
    """Show where the median job's time goes, by offered rate."""
    offers = found["offers"]
    names = [f"{offer['rate']} jobs/s" if offer["rate"] else "one at\na time" for offer in offers]
    reached = [0.0] * len(offers)
    for stage in STAGES:
        values = [1000 * offer["stages"][stage]["p50"] for offer in offers]
        axes.bar(names, values, bottom=reached, label=stage)
        reached = [bottom + value for bottom, value in zip(reached, values, strict=True)]
    axes.plot(
        names, [1000 * offer["completed"]["p99"] for offer in offers], "k_", markersize=30, label="completed, p99"
    )
    kept = [offer["completed"] for offer in offers if offer["completed"]["p50"] < QUEUE_SECONDS]
    if kept:
        # What a growing queue takes would make all else too small to see.
        top = 1200 * max(completed["p99"] for completed in kept)
        axes.set_ylim(0, top)
        for place, offer in enumerate(offers):
            if offer["completed"] not in kept:
                told = f"{offer['completed']['p50']:.1f} s:\nthe queue grows"
                axes.annotate(told, (place, top), ha="center", va="bottom", annotation_clip=False)
    axes.set_ylabel("ms (median of each stage)")
    axes.set_title("From the request to the image", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def throughput(found: Found, axes: Axes) -> None:
    """Show what a job costs each process, by the size of the burst."""
    bursts = found["bursts"]
    names = [f"{burst['jobs']:,.0f}\n{burst['door']}" for burst in bursts]
    reached = [0.0] * len(bursts)
    for process in bursts[0]["processes"]:
        values = [1000 * burst["processes"][process]["cpu"] / burst["jobs"] for burst in bursts]
        if process != "benchmark" and max(values) >= 0.1:
            axes.bar(names, values, bottom=reached, label=process)
            reached = [bottom + value for bottom, value in zip(reached, values, strict=True)]
    axes.set_ylabel("CPU ms a job")
    axes.set_title("What a job costs")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def peers(found: Found, axes: Axes) -> None:
    """Show jobs a second, on a logarithmic scale."""
    ways = {"KubeDiffusion": found["burst"]}
    ways |= {f"Job a request,\n{job['node']} node,\n{job['limits']} limits": job for job in found["jobs"]}
    if "missing" not in found["celery"]:
        ways["Celery\nwith Redis"] = found["celery"]
    rates = [way["jobs"] / way["seconds"] for way in ways.values()]
    bars = axes.barh(list(ways), rates)
    axes.bar_label(bars, fmt="{:.1f}", padding=3)
    axes.set_xscale("log")
    axes.set_xlim(1, 2 * max(rates))
    axes.set_xlabel("jobs/s")
    axes.invert_yaxis()
    axes.set_title("A burst, submitted to completed")


PLOTS: dict[str, Callable[[Found, Axes], None]] = {"latency": latency, "throughput": throughput, "peers": peers}
"""What is drawn of each suite."""
