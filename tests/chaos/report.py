"""Runs in words and tables: a row for each seed, and what came of each."""

from __future__ import annotations

import os
import platform
import re
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
HEADING = "### Seed "
COLUMNS = (
    "seed",
    "jobs",
    "faults",
    "Succeeded",
    "Failed",
    "Cancelled",
    "retries",
    "images checked",
    "slowest beside a fault",
)
HEAD = "\n".join([f"| {' | '.join((*COLUMNS, 'laws broken'))} |", f"| {' | '.join(['---:'] * (len(COLUMNS) + 1))} |"])


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


def row(seed: int, result: Result) -> str:
    """Return the results of the runs in one row of a table."""
    values: list[object] = [seed, *["-"] * (len(COLUMNS) - 2)]
    if result.outcome is not None:
        evidence = result.outcome.evidence
        last = [versions[-1] for versions in evidence.jobs.values()]
        phases = Counter(map(phase, last))
        ends = (phases["Succeeded"], phases["Failed"], phases["Cancelled"])
        retries = sum(status(version).get("retries", 0) for version in last)
        values[1:] = [
            len(last),
            sum(strike.hit for strike in result.outcome.strikes),
            *ends,
            retries,
            len(evidence.stored),
        ]
    values.append(f"{max(pace.ratio for pace in result.paces):.2f} times" if result.paces else "-")
    return f"| {' | '.join(map(str, [*values, len(result.violations)]))} |"


def table(seed: int, plan: Plan, result: Result) -> str:
    """Return the results of the runs as Markdown, under a heading of the seed's."""
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
    return "\n".join([f"{HEADING}{seed}", f"{extent}{machine}.", "", *lines]).rstrip() + "\n"


def _pace(pace: Pace) -> str:
    return f"| {pace.fault} | {fmean(pace.without):.2f} | {fmean(pace.beside):.2f} | {pace.ratio:.2f} |"


def write(page: Path, seed: int, summary: str, result: str) -> None:
    """Put a seed's results in their place on a page, beside those of other seeds.

    Args:
        page: The page.
        seed: The seed; what the page has of the same seed is replaced.
        summary: Its row.
        result: Its tables.
    """
    before, _, rest = page.read_text().partition(BEGIN)
    results, _, after = rest.partition(END)
    overview, *blocks = results.split(HEADING)
    rows = {int(line.split("|")[1]): line for line in re.findall(r"^\| \d+ \|.*$", overview, re.MULTILINE)}
    tables = {int(found.partition("\n")[0]): HEADING + found.strip() for found in blocks}
    rows[seed], tables[seed] = summary, result.strip()
    parts = ["\n".join([HEAD, *(rows[each] for each in sorted(rows))]), *(tables[each] for each in sorted(tables))]
    page.write_text("\n\n".join([f"{before}{BEGIN.strip()}", *parts, f"{END}{after}"]))


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
