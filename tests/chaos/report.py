"""A run in words and tables."""

from __future__ import annotations

import os
import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from chaos.checker import LAWS
from chaos.evidence import Evidence, Pace
from chaos.faults import Kind
from chaos.run import Outcome, Plan
from chaos.violation import Violation, phase, status

BEGIN, END = "<!-- results: written by make chaos -->\n", "<!-- end of results -->\n"


@dataclass(frozen=True)
class Result:
    """What came of all runs.

    Attributes:
        outcome: Of the run in one namespace, if there was one.
        paces: How fast a neighbour's jobs ended beside each fault of another namespace.
        violations: Of both.
    """

    outcome: Outcome | None
    paces: Sequence[Pace]
    violations: Sequence[Violation]


def table(seed: int, plan: Plan, result: Result) -> str:
    """Return the results of the runs as Markdown."""
    broken = Counter(violation.law for violation in result.violations)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    machine = f"{os.cpu_count()} processors ({platform.machine()}), {memory} GiB, Linux {platform.release()}"
    extent = f"{len(plan.orders)} jobs at {plan.rate:g} a second, "
    lines = []
    if result.outcome is not None:
        strikes = result.outcome.strikes
        extent += f"{len(strikes)} faults ({sum(strike.hit for strike in strikes)} found something to strike), "
        extent += f"{result.outcome.seconds:.0f} s; "
        lines += ["| fault | times |", "| --- | ---: |"]
        lines += [f"| {kind} | {count} |" for kind, count in _faults(result.outcome)]
        lines += ["", "| what came of it | |", "| --- | ---: |"]
        lines += [f"| {what} | {value} |" for what, value in _counts(result.outcome.evidence)]
        lines += [""]
    if result.paces:
        lines += ["| fault in another namespace | seconds a job without it | beside it | ratio |"]
        lines += ["| --- | ---: | ---: | ---: |"]
        lines += [_pace(pace) for pace in result.paces]
        lines += [""]
    lines += ["| law | broken |", "| --- | ---: |"]
    lines += [f"| {name} | {broken[name]} |" for name in (law.__name__.replace("_", " ") for law in LAWS)]
    lines += ["", *(f"- {violation}" for violation in result.violations[:50])]
    return "\n".join([f"Seed {seed}: {extent}{machine}.", "", *lines]).rstrip() + "\n"


def _pace(pace: Pace) -> str:
    return f"| {pace.fault} | {fmean(pace.without):.2f} | {fmean(pace.beside):.2f} | {pace.ratio:.2f} |"


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
