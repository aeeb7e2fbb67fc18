"""``python -m kubediffusion.benchmarks``, which ``make bench`` runs: measures, and writes what it found."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from kubediffusion.benchmarks import (
    documents,
    latency,
    machine,
    peers,
    polling,
    profiles,
    site,
    sizes,
    steady,
    throughput,
)
from kubediffusion.benchmarks.site import BenchmarkError, Site
from kubediffusion.benchmarks.sizes import Sizes
from kubediffusion.local import installation
from kubediffusion.local.cluster import ClusterSettings, LocalCluster
from kubediffusion.local.errors import LocalError
from kubediffusion.local.layout import REPOSITORY
from kubediffusion.local.node.restarts import CrashBackoff
from kubediffusion.local.progress import step

Suite = Callable[[Site, Sizes], Awaitable[dict[str, Any]]]

SUITES: dict[str, Suite] = {
    "latency": latency.run,
    "throughput": throughput.run,
    "steady": steady.run,
    "polling": polling.run,
    "peers": peers.run,
}
"""The suites in the order in which they run: those that fill the cluster before those that need it full."""
CPUS = "64"
"""Processors that the node offers to Pods, so many that no Pod waits for its requests."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suites that the command line names; a failure is a message and exit code 1."""
    parser = argparse.ArgumentParser(prog="kubediffusion.benchmarks", description="Measure the control path.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} (default all)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that all works, measures nothing")
    parser.add_argument("--profile", action="store_true", help=f"write the API server's profile too: {profiles.FILE}")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/performance.md")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="measure nothing; render these results"
    )
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist" / "bench", help="folder (%(default)s)")
    sizes.add_options(parser)
    options = parser.parse_args(arguments)
    if unknown := set(options.suites) - SUITES.keys():
        parser.error(f"there is no suite {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    # Whoever measures behind a proxy: nothing here is on its other side.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)
    try:
        if options.source:
            results = json.loads(options.source.read_text())
        else:
            wanted = sizes.from_options(options)
            results = measure(options.suites or list(SUITES), wanted, options.output, profile=options.profile)
        sys.stdout.write(documents.write(results, options.output))
        if options.docs:
            documents.publish(results, options.output)
    except (LocalError, BenchmarkError) as error:
        sys.stderr.write(f"\nkubediffusion.benchmarks: {error}\n")
        raise SystemExit(1) from None


def measure(suites: Sequence[str], wanted: Sizes, output: Path, *, profile: bool) -> dict[str, Any]:
    """Run suites on a cluster of their own, and return their results; each is saved as soon as it is there."""
    described = machine.describe()
    settings = ClusterSettings(gpus=0, cpu=CPUS, backoff=CrashBackoff(initial=0.5, limit=2.0))
    with ExitStack() as stack:
        with step("Starting etcd, Kubernetes, S3 and a node"):
            cluster = stack.enter_context(LocalCluster(settings))
        cluster.apply(installation.cluster_scoped())
        cluster.store.create_bucket(installation.BUCKET)
        return uvloop.run(run(cluster, described, suites, wanted, output, profile=profile))


async def run(
    cluster: LocalCluster,
    described: dict[str, str],
    suites: Sequence[str],
    wanted: Sizes,
    output: Path,
    *,
    profile: bool = False,
) -> dict[str, Any]:
    """Run suites on a cluster, and return their results by name."""
    results: dict[str, Any] = {}
    async with site.installed(cluster) as studio:
        for name in SUITES:
            if name in suites:
                with step(f"Measuring {name}"):
                    found = await SUITES[name](studio, wanted)
                results[name] = {"machine": described, **found}
                documents.save(results, output)
        if profile:
            with step("Profiling the API server"):
                await profiles.write(studio, output)
    return results


if __name__ == "__main__":
    main()
