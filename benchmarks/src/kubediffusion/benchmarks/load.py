"""Requests over kept connections as fast as the server answers, from a process of its own, so that it costs nobody."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from kubediffusion.benchmarks import figures
from kubediffusion.benchmarks.loopback import connect, message
from kubediffusion.benchmarks.usage import usage
from kubediffusion.local.processes import killed_with_parent

GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class Load:
    """The requests to offer to a server.

    Attributes:
        host: Its address.
        port: Its port.
        method: GET or POST.
        paths: One a connection, in turn.
        body: JSON of every request; None for none.
        connections: How many clients there are. Each asks again once it is answered.
        seconds: For how long.
        expected: The status of a right answer.
    """

    host: str
    port: int
    method: str
    paths: list[str]
    body: Any
    connections: int
    seconds: float
    expected: int


async def offer(load: Load, server: int) -> dict[str, float]:
    """Offer a load to a server.

    Args:
        load: The load.
        server: The server's process.

    Returns:
        rate (answers a second), wrong (their number), p50, p90 and p99 (seconds), cpu (the server's seconds an answer).
    """
    before = usage(server).cpu
    process = await asyncio.create_subprocess_exec(
        *killed_with_parent([sys.executable, "-m", __name__]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    told = json.dumps(asdict(load)).encode()
    answer, _ = await asyncio.wait_for(process.communicate(told), load.seconds + GRACE_SECONDS)
    found: dict[str, float] = json.loads(answer)
    return {**found, "cpu": (usage(server).cpu - before) / found.pop("answered")}


async def main() -> None:
    """Offer the load that standard input describes, and write the figures to standard output."""
    load = Load(**json.load(sys.stdin))
    connections = [await connect(load.host, load.port) for _ in range(load.connections)]
    times: list[float] = []
    wrong = 0
    began = time.perf_counter()

    async def ask(number: int) -> None:
        nonlocal wrong
        request = message(load.method, load.paths[number % len(load.paths)], load.body)
        now = time.perf_counter()
        while now < began + load.seconds:
            status, _ = await connections[number].send(request)
            asked, now = now, time.perf_counter()
            times.append(now - asked)
            wrong += status != load.expected

    await asyncio.gather(*(ask(number) for number in range(load.connections)))
    elapsed = time.perf_counter() - began
    found = {"answered": len(times), "rate": len(times) / elapsed, "wrong": wrong, **figures.percentiles(times)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    uvloop.run(main())
