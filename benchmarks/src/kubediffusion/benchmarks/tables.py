"""Each suite's results as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubediffusion.benchmarks.latency import STAGES
from kubediffusion.benchmarks.targets import TARGETS
from kubediffusion.benchmarks.throughput import cost

Found = Mapping[str, Any]
"""The results of a suite."""


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    titles = list(head)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def suite(name: str, found: Found) -> str:
    """Return a suite's results in Markdown: its targets, then all figures."""
    measured = ((target, target.measured(found)) for target in TARGETS[name])
    rows = [
        (
            target.what,
            f"{'≥' if target.least else '≤'} {target.bound:g} {target.unit}",
            f"{value:.3g}",
            "yes" if target.met(value) else "**no**",
        )
        for target, value in measured
        if value is not None
    ]
    reach = f"{table(('', 'reach', 'measured', 'met'), rows)}\n" if rows else ""
    return f"{reach}{SUITES[name](found)}"


def latency(found: Found) -> str:
    """Return tables of how long jobs took, in all and by stage."""
    offers = found["offers"]
    names = [_rate(offer) for offer in offers]
    total = table(
        ("offered", "runs", "completed p50 / p90 / p99, ms", "seen by a polling client, ms", "busy cores"),
        (
            (name, _runs(offer), _three(offer["completed"]), _three(offer["seen"]), f"{offer['cores']:.2f}")
            for name, offer in zip(names, offers, strict=True)
        ),
    )
    split = table(
        ("p50 / p90 / p99, ms", *names),
        ((stage, *(_three(offer["stages"][stage]) for offer in offers)) for stage in STAGES),
    )
    return f"{total}\n{split}"


def throughput(found: Found) -> str:
    """Return tables of jobs per second, and of what each job cost."""
    bursts = found["bursts"]
    names = [f"{burst['jobs']:,.0f} by {burst['door']}" for burst in bursts]
    total = table(
        ("burst", "runs", "jobs/s", "accepted/s", "CPU ms a job", "API-server requests a job", "operator RSS, MiB"),
        (
            (
                name,
                burst["runs"],
                f"{burst['jobs'] / burst['seconds']:.1f}",
                f"{burst['jobs'] / burst['accepted']:.0f}",
                f"{1000 * cost(burst):.1f}",
                f"{sum(burst['requests'].values()) / burst['jobs']:.2f}",
                f"{burst['processes']['operator']['rss']:.0f}",
            )
            for name, burst in zip(names, bursts, strict=True)
        ),
    )
    over_http = [burst for burst in bursts if burst["door"] == "HTTP"]
    first, last = over_http[0], over_http[-1]
    times = cost(last) / cost(first)
    flat = f"Cost a job at {last['jobs']:,.0f} jobs against {first['jobs']:,.0f}: {times:.2f} times.\n"
    processes = table(
        ("CPU ms a job (RSS at the end, MiB)", *names),
        ((process, *(_process(burst, process) for burst in bursts)) for process in bursts[0]["processes"]),
    )
    kinds = dict.fromkeys(kind for burst in bursts for kind in sorted(burst["requests"]))
    requests = table(
        ("API-server requests a job", *names),
        (
            (f"`{kind}`", *(f"{burst['requests'].get(kind, 0) / burst['jobs']:.3f}" for burst in bursts))
            for kind in kinds
            if any(burst["requests"].get(kind, 0) >= burst["jobs"] / 100 for burst in bursts)
        ),
    )
    return f"{total}\n{flat}\n{processes}\n{requests}"


def steady(found: Found) -> str:
    """Return tables of what an idle installation costs, and of how fast its parts are back."""
    seconds = found["seconds"]
    idle = table(
        (f"{found['jobs']:,.0f} finished jobs, {seconds:.0f} s", "CPU, % of a core", "RSS, MiB", "peak RSS, MiB"),
        (
            (name, f"{100 * used['cpu'] / seconds:.2f}", f"{used['rss']:.0f}", f"{used['peak']:.0f}")
            for name, used in found["processes"].items()
        ),
    )
    requests = table(
        ("API-server requests a minute", ""),
        ((f"`{kind}`", f"{60 * count / seconds:.1f}") for kind, count in sorted(found["requests"].items())),
    )
    restarts = table(
        ("kill -9", "from the kill until it serves, s", "from the new process until it serves, s"),
        ((part, f"{told['down']:.2f}", f"{told['start']:.2f}") for part, told in found["restarts"].items()),
    )
    return f"{idle}\n{requests}\n{restarts}"


def polling(found: Found) -> str:
    """Return a table of the requests per second that the API answers, and the bare server."""
    loads = {
        f"{found['clients']:,} clients poll a pending task each": found["polls"],
        f"{found['submitters']:,} clients submit": found["submits"],
    }
    rows = [
        (
            f"{name}, {server}",
            f"{measured[key]['rate']:.0f}",
            f"{1000 * measured[key]['p99']:.0f}",
            f"{1e6 * measured[key]['cpu']:.0f}",
        )
        for name, measured in loads.items()
        for server, key in (("KubeDiffusion", "ours"), ("a bare FastAPI server", "theirs"))
    ]
    ratios = "".join(
        f"{name}: {measured['rate ratio']:.2f} times the bare server's requests/s "
        f"({measured['cpu ratio']:.2f} times by processor time).\n"
        for name, measured in loads.items()
    )
    table_text = table(("load", "requests/s", "p99, ms", "CPU µs a request"), rows)
    return f"{table_text}\n{ratios}\nAPI-server requests about jobs during all polls: {found['requests']}.\n"


def peers(found: Found) -> str:
    """Return tables of the same work done by other systems."""
    burst, singles, queue = found["burst"], found["singles"], found["celery"]
    own = burst["jobs"] / burst["seconds"]
    rows = [
        ("KubeDiffusion", f"{burst['jobs']:,.0f}", f"{own:.1f}", "1", _three(singles["seen"])),
        *(
            (
                f"one batch/v1 Job a request, {job['node']} node, {job['limits']} client limits",
                f"{job['jobs']:,.0f}",
                f"{job['jobs'] / job['seconds']:.1f}",
                f"{own * job['seconds'] / job['jobs']:.1f}",
                "",
            )
            for job in found["jobs"]
        ),
    ]
    if "missing" in queue:
        rows.append(("Celery with Redis", queue["missing"], "", "", ""))
    else:
        rate = queue["jobs"] / queue["seconds"]
        ratio, completed = f"{own / rate:.2f}", _three(queue["completed"])
        rows.append(("Celery with Redis", f"{queue['jobs']:,.0f}", f"{rate:.1f}", ratio, completed))
    head = ("way", "jobs", "jobs/s", "KubeDiffusion's jobs/s ÷ these", "one at a time, p50 / p90 / p99, ms")
    return table(head, rows)


SUITES: dict[str, Callable[[Found], str]] = {
    "latency": latency,
    "throughput": throughput,
    "steady": steady,
    "polling": polling,
    "peers": peers,
}
"""The function that formats each suite's results."""


def _process(burst: Found, process: str) -> str:
    used = burst["processes"][process]
    return f"{1000 * used['cpu'] / burst['jobs']:.2f} ({used['rss']:.0f})"


def _three(percentiles: Mapping[str, float]) -> str:
    return " / ".join(f"{1000 * value:.1f}" for value in percentiles.values())


def _rate(offer: Found) -> str:
    return f"{offer['rate']} jobs/s" if offer["rate"] else "one at a time"


def _runs(offer: Found) -> str:
    return f"{offer['runs']} of {offer['jobs']:,.0f}"
