"""The results as a Markdown table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Found = dict[str, Any]

RATE = "images/s"
"""From the first job to the last image, in storage: what fills the worker and what empties it count."""


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        what: What was measured.
        value: What was found.
        reach: What is to be reached; empty where nothing is.
        met: Whether it is.
    """

    what: str
    value: str
    reach: str = ""
    met: bool | None = None


def table(found: Found) -> str:
    """Return a Markdown table of results; what was not measured has no row."""
    # What is to be reached is for Stable Diffusion 2.1's architecture, compiled.
    judged = bool(found.get("compiled")) and found.get("architecture", "sd21") == "sd21"
    rows = [row for rows in (_throughput, _worker, _starts, _rest) for row in rows(found)]
    versions = found.get("versions", {}).items()
    state = "compiled" if found.get("compiled") else "nothing compiled"
    about = ", ".join([found.get("device", "no device"), state, *(f"{name} {version}" for name, version in versions)])
    if judged:
        lines = ["| what | reach | measured | met |", "| --- | ---: | --- | ---: |"]
        lines += [f"| {row.what} | {row.reach} | {row.value} | {_MET[row.met]} |" for row in rows]
    else:
        lines = ["| what | measured |", "| --- | --- |", *(f"| {row.what} | {row.value} |" for row in rows)]
    return "\n".join([*lines, "", f"<sub>{about}</sub>", ""])


_MET = {None: "", True: "yes", False: "**no**"}


def _throughput(found: Found) -> list[Row]:
    rows = []
    for size in (1, 8, 16):
        rates = _part(found, f"raw {size}")
        if rates.get("raw"):
            ratio = rates["engine"] / rates["raw"]
            value = f"{rates['engine']:.2f} against {rates['raw']:.2f}: {ratio:.3f}"
            rows.append(Row(f"engine against the raw loop, images/s, batch {size}", value, "≥ 0.97", ratio >= 0.97))
    if mixed := _part(found, "mixed"):
        ratio = mixed["ratio"]
        rows.append(
            Row(
                "jobs of 10, 25 and 50 steps against jobs of 25, ratio of image steps/s",
                f"{ratio:.3f}",
                "≥ 0.95",
                ratio >= 0.95,
            )
        )
    if "ratio" in (pair := _part(found, "pair")):
        together = " + ".join(f"{rate:.2f}" for rate in pair["together"])
        value = f"{together} against {pair['alone']:.2f}: {pair['ratio']:.2f}"
        rows.append(Row("two workers on two GPUs against one, images/s", value, "≥ 1.9", pair["ratio"] >= 1.9))
    return rows


def _worker(found: Found) -> list[Row]:
    rows = []
    whole, plain = _part(found, "end_to_end"), _part(found, "plain")
    if whole:
        rate = whole[RATE]
        rows.append(Row("worker, jobs to PNGs in S3, saturated, images/s", f"{rate:.2f}", "≥ 9.0", rate >= 9.0))
        if plain:
            times = rate / plain["images/s"]
            rows.append(Row("plain server: one image after the other, images/s", f"{plain['images/s']:.2f}"))
            rows.append(Row("the worker against it", f"{times:.1f} times", "≥ 7", times >= 7))
    if alone := _part(found, "alone"):
        seconds = alone["seconds to PNG"]
        rows.append(Row("one job alone, until its PNG's bytes, s", f"{seconds:.3f}", "≤ 0.20", seconds <= 0.20))
        rows.append(Row("one job alone, until storage has it, s", f"{alone['seconds to storage']:.3f}"))
    for name, about in (("poisson", "25 steps"), ("poisson mixed", "10, 25 and 50 steps")):
        if poisson := _part(found, name):
            slots, static, ratio = (poisson[kind] for kind in ("slots", "static", "ratio"))
            value = ", ".join(f"{p} {slots[p]:.2f} s against {static[p]:.2f} s: {ratio[p]:.2f}" for p in ("p50", "p95"))
            met = max(ratio.values()) <= 0.6
            rows.append(Row(f"random load of 70 %, {about}, slots against static batches", value, "≤ 0.6", met))
    return rows


def _starts(found: Found) -> list[Row]:
    rows = []
    reach = {("cold start", "first image"): 12, ("warm start", "first image at full speed"): 22}
    for name, about in (("cold start", "nothing compiled yet"), ("warm start", "compiled by another worker")):
        moments = _part(found, name)
        for what in ("libraries", "weights", "loaded", "first image", "first image at full speed"):
            if what in moments:
                wish = reach.get((name, what))
                row = f"start, {about}: {what}, s after the process began", f"{moments[what]:.1f}"
                rows.append(Row(*row) if wish is None else Row(*row, f"≤ {wish}", moments[what] <= wish))
    return rows


def _rest(found: Found) -> list[Row]:
    rows = []
    if "peak reserved GB" in (memory := _part(found, "warm")):
        peak = memory["peak reserved GB"]
        rows.append(Row("peak GPU memory with all batch sizes ready, GB", f"{peak:.1f}", "≤ 12", peak <= 12))
    if same := _part(found, "same"):
        apart = max(same["levels from diffusers' call"])
        what = "largest difference of a pixel (0 to 255)"
        rows.append(Row(f"{what} from diffusers' own call", str(apart), "≤ 1", apart <= 1))
        repeated = same["deterministic levels"]
        rows.append(Row(f"{what} between two deterministic attempts", str(repeated), "0", repeated == 0))
    if short := _part(found, "memory_runs_out"):
        rows.append(
            Row(
                "memory runs out under a batch of 16: largest batch afterwards, images that came out",
                f"{short['limits'][0]}; {short['images']}",
            )
        )
    if png := _part(found, "png"):
        rows.append(Row("a PNG, ms", f"{png['milliseconds']:.1f}"))
    if replays := _part(found, "replays"):
        sizes = sorted((name.removeprefix("step ") for name in replays if name.startswith("step")), key=int)
        value = ", ".join(f"{replays[f'step {size}']:.1f}" for size in sizes)
        rows.append(Row(f"a step's graph alone, batch {', '.join(sizes)}, ms", value))
        rows += [Row(f"to {what} one, ms", f"{replays[what]:.1f}") for what in ("encode", "decode") if what in replays]
    return rows


def _part(found: Found, name: str) -> Found:
    """Return a part of the results; an empty mapping where it was not measured or broke."""
    part: Found = found.get(name, {})
    return {} if "broken" in part else part
