"""A run in words and tables."""

from __future__ import annotations

import os
import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from chaos.checker import LAWS, Violation, phase, status
from chaos.evidence import Evidence
from chaos.faults import Kind
from chaos.run import Outcome, Plan

BEGIN, END = "<!-- results: written by make chaos -->\n", "<!-- end of results -->\n"


def table(seed: int, plan: Plan, outcome: Outcome, violations: Sequence[Violation]) -> str:
    """Return the results of a run as Markdown."""
    evidence = outcome.evidence
    broken = Counter(violation.law for violation in violations)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    machine = f"{os.cpu_count()} processors ({platform.machine()}), {memory} GiB, Linux {platform.release()}"
    extent = f"{len(plan.orders)} jobs at {plan.rate:g} a second, {len(outcome.strikes)} faults"
    extent += f" ({sum(strike.hit for strike in outcome.strikes)} found something to strike)"
    lines = [
        f"Seed {seed}: {extent}, {outcome.seconds:.0f} s; {machine}.",
        "",
        "| fault | times |",
        "| --- | ---: |",
        *(f"| {kind} | {count} |" for kind, count in _faults(outcome)),
        "",
        "| what came of it | |",
        "| --- | ---: |",
        *(f"| {what} | {value} |" for what, value in _counts(evidence)),
        "",
        "| law | broken |",
        "| --- | ---: |",
        *(f"| {law.__name__.replace('_', ' ')} | {broken[law.__name__.replace('_', ' ')]} |" for law in LAWS),
        "",
        *(f"- {violation}" for violation in violations[:50]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def write(page: Path, result: str) -> None:
    """Put results in their place on a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{result}\n{END}{rest.partition(END)[2]}")


def _faults(outcome: Outcome) -> list[tuple[Kind, int]]:
    counts = Counter(strike.fault.kind for strike in outcome.strikes if strike.hit)
    return [(kind, counts[kind]) for kind in Kind]


def _counts(evidence: Evidence) -> list[tuple[str, object]]:
    last = [versions[-1] for versions in evidence.jobs.values()]
    phases = Counter(phase(version) for version in last)
    codes = Counter(status(version).get("error", {}).get("code") for version in last if phase(version) == "Failed")
    failed = ", ".join(f"{code} {count}" for code, count in sorted(codes.items(), key=str))
    most: dict[str, int] = defaultdict(int)
    for sample in evidence.memory:
        most[sample.part] = max(most[sample.part], sample.bytes)
    return [
        ("jobs accepted", len(evidence.accepted)),
        ("jobs seen", len(last)),
        ("Succeeded", phases["Succeeded"]),
        ("Failed" + (f" ({failed})" if failed else ""), phases["Failed"]),
        ("Cancelled", phases["Cancelled"]),
        ("without an end (deleted while they waited)", sum(phases[p] for p in ("Pending", "Scheduled", "Running"))),
        ("bound more than once", sum(status(version).get("attempt", 0) > 1 for version in last)),
        ("retries", sum(status(version).get("retries", 0) for version in last)),
        ("images checked", len(evidence.stored)),
        ("versions of jobs recorded", sum(map(len, evidence.jobs.values()))),
        ("of which after a gap in the recording", sum(v.gap for vs in evidence.jobs.values() for v in vs)),
        *(
            (f"most memory of {part.removeprefix('kubediffusion-')}", f"{held >> 20} MiB")
            for part, held in most.items()
        ),
    ]
