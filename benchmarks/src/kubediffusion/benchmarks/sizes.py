"""How much each suite does: the defaults are those of the published figures, `QUICK` only shows that all works."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Sizes:
    """Numbers of jobs, clients and seconds; each is an option of the command line.

    Attributes:
        runs: Runs that medians are taken of.
        singles: Jobs sent one at a time for their latency.
        rates: Jobs a second offered for their latency.
        rate_seconds: How long each rate is offered.
        bursts: Jobs sent at once over HTTP; the largest is run at most three times.
        applied: Jobs sent at once by ``kubectl apply``.
        rivals: Jobs of the comparison with one batch/v1 Job a request.
        tasks: Tasks of the comparison with Celery.
        kept: Finished jobs that lie in the cluster when nothing runs.
        idle_seconds: How long nothing runs.
        restarts: Restarts of each part.
        pollers: Clients that poll.
        load_seconds: How long each load of requests lasts.
    """

    runs: int = 3
    singles: int = 100
    rates: tuple[int, ...] = (10, 20, 50, 100)
    rate_seconds: int = 30
    bursts: tuple[int, ...] = (100, 1_000, 10_000)
    applied: int = 10_000
    rivals: int = 200
    tasks: int = 1_000
    kept: int = 10_000
    idle_seconds: int = 60
    restarts: int = 3
    pollers: int = 1_000
    load_seconds: int = 5


FULL = Sizes()
QUICK = Sizes(
    runs=1,
    singles=5,
    rates=(10,),
    rate_seconds=2,
    bursts=(20, 60),
    applied=20,
    rivals=5,
    tasks=20,
    kept=60,
    idle_seconds=2,
    restarts=1,
    pollers=50,
    load_seconds=1,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Let the command line change each size."""
    for size in fields(Sizes):
        several = isinstance(size.default, tuple)
        parser.add_argument(
            f"--{size.name.replace('_', '-')}",
            type=_numbers if several else int,
            metavar="N,N" if several else "N",
            help=f"(default {_text(size.default)}, quick {_text(getattr(QUICK, size.name))})",
        )


def from_options(options: argparse.Namespace) -> Sizes:
    """Return the sizes that a command line asks for."""
    base = QUICK if options.quick else FULL
    told = {size.name: getattr(options, size.name) for size in fields(Sizes)}
    return Sizes(**{name: getattr(base, name) if value is None else value for name, value in told.items()})


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
