"""What was found, as a table for people."""

from __future__ import annotations

from typing import Any

Found = dict[str, Any]


def table(found: Found) -> str:
    """Give a Markdown table of results; what was not measured has no row."""
    rows = [row for rows in (_throughput, _worker, _starts, _rest) for row in rows(found)]
    versions = found.get("versions", {}).items()
    state = "compiled" if found.get("compiled") else "nothing compiled"
    about = ", ".join([found.get("device", "no device"), state, *(f"{name} {version}" for name, version in versions)])
    lines = ["| what | measured |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows)]
    return "\n".join([*lines, "", f"<sub>{about}</sub>", ""])


def _throughput(found: Found) -> list[tuple[str, str]]:
    rows = []
    for size in (1, 8, 16):
        rates = _part(found, f"raw {size}")
        if rates.get("raw"):
            value = f"{rates['engine']:.2f} against {rates['raw']:.2f}: {rates['engine'] / rates['raw']:.3f}"
            rows.append((f"engine against the raw loop, images/s, batch {size}", value))
    if mixed := _part(found, "mixed"):
        rows.append(("jobs of 10, 25 and 50 steps against jobs of 25, images · steps/s", f"{mixed['ratio']:.3f}"))
    if "ratio" in (pair := _part(found, "pair")):
        together = " + ".join(f"{rate:.2f}" for rate in pair["together"])
        value = f"{together} against {pair['alone']:.2f}: {pair['ratio']:.2f}"
        rows.append(("two workers on two GPUs against one, images/s", value))
    return rows


def _worker(found: Found) -> list[tuple[str, str]]:
    rows = []
    whole, seed = _part(found, "end_to_end"), _part(found, "seed")
    if whole:
        rate = whole["images/s without the first and the last batch"]
        rows.append(("worker, jobs to PNGs in S3, saturated, images/s", f"{rate:.2f}"))
        if seed:
            times = rate / seed["images/s"]
            rows.append(("plain server: one image after the other, images/s", f"{seed['images/s']:.2f}"))
            rows.append(("the worker against it", f"{times:.1f} times"))
    if alone := _part(found, "alone"):
        rows.append(("one job alone, until its PNG's bytes, s", f"{alone['seconds to PNG']:.3f}"))
        rows.append(("one job alone, until storage has it, s", f"{alone['seconds to storage']:.3f}"))
    for name, about in (("poisson", "25 steps"), ("poisson mixed", "10, 25 and 50 steps")):
        if poisson := _part(found, name):
            slots, static, ratio = (poisson[kind] for kind in ("slots", "static", "ratio"))
            value = ", ".join(f"{p} {slots[p]:.2f} against {static[p]:.2f}: {ratio[p]:.2f}" for p in ("p50", "p95"))
            rows.append((f"random load of 70 %, {about}, slots against static batches, s", value))
    return rows


def _starts(found: Found) -> list[tuple[str, str]]:
    rows = []
    for name, about in (("cold start", "empty cache"), ("warm start", "compiled by another worker")):
        moments = _part(found, name)
        rows += [
            (f"start, {about}: {what}, s after the process began", f"{moments[what]:.1f}")
            for what in ("libraries", "weights", "loaded", "first image", "first image at full speed")
            if what in moments
        ]
    return rows


def _rest(found: Found) -> list[tuple[str, str]]:
    rows = []
    if "peak reserved GB" in (memory := _part(found, "warm")):
        rows.append(("peak GPU memory with all batch sizes ready, GB", f"{memory['peak reserved GB']:.1f}"))
    if same := _part(found, "same"):
        rows.append(("levels of 255 from diffusers' own call", str(max(same["levels from diffusers' call"]))))
        rows.append(("levels of 255 between two deterministic attempts", str(same["deterministic levels"])))
    if short := _part(found, "memory_runs_out"):
        rows.append(
            ("memory runs out: largest batch after it, images that came out", f"{short['limits']}, {short['images']}")
        )
    return rows


def _part(found: Found, name: str) -> Found:
    """Give a part that was measured and did not break."""
    part: Found = found.get(name, {})
    return {} if "broken" in part else part
