"""What is asked of the system: jobs of every sort, by both doors, some of them cancelled or deleted on the way."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

API_VERSION = "kubediffusion.io/v1alpha1"
MODELS = ("fast", "slow")
"""The first is the default."""
SCHEME = "chaos:"
"""What the path of a model's source begins with; the seconds of a step follow."""
NEVER = "never"
"""What follows for a model whose workers never finish loading it."""


class Route(StrEnum):
    """How a job comes in."""

    GENERATE = "POST /generate"
    V1 = "POST /v1/jobs"
    KUBECTL = "kubectl apply"


class Change(StrEnum):
    """What is done to a job after it was accepted."""

    CANCEL = "cancel"
    DELETE = "delete"


@dataclass(frozen=True)
class Order:
    """One job to ask for.

    Attributes:
        number: Its place in the run.
        route: How it comes in.
        spec: Its spec, as a GenerationJob has it.
        change: What is done to it afterwards, if anything.
        delay: Seconds from its acceptance to that.
    """

    number: int
    route: Route
    spec: dict[str, Any]
    change: Change | None = None
    delay: float = 0.0

    @property
    def manifest(self) -> dict[str, Any]:
        """The GenerationJob to apply."""
        return {
            "apiVersion": API_VERSION,
            "kind": "GenerationJob",
            "metadata": {"name": f"applied-{self.number:05}"},
            "spec": self.spec,
        }

    @property
    def request(self) -> dict[str, Any]:
        """The body to POST: the HTTP API writes the same fields in snake case."""
        return {_snake(field): value for field, value in self.spec.items()}


def orders(seed: int, count: int) -> list[Order]:
    """Return the jobs of a run: a pure function of its arguments."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    return [_order(rng, number) for number in range(count)]


def _order(rng: random.Random, number: int) -> Order:
    route = rng.choices((Route.GENERATE, Route.V1, Route.KUBECTL), (1, 1, 2))[0]
    spec: dict[str, Any] = {
        "prompt": f"chaos {number}, drawn by {rng.choice(('hand', 'machine', 'chance'))}",
        # Three lengths: done within one batch write, about a second, and long enough to be reported as Running.
        "numInferenceSteps": rng.choices((1, 4, 20), (7, 2, 1))[0],
    }
    if route is not Route.GENERATE:
        spec |= _more(rng)
    change = rng.choices((None, Change.CANCEL, Change.DELETE), (90, 7, 3))[0]
    return Order(number, route, spec, change, round(rng.uniform(0, 3), 2))


def _more(rng: random.Random) -> dict[str, Any]:
    """Choose some of the fields that clients of ``POST /generate`` seldom use, each with its own chance."""
    chances: list[tuple[float, dict[str, Any]]] = [
        (0.1, {"model": MODELS[1]}),
        (0.3, {"priority": rng.randint(-2, 2)}),
        (0.3, {"numImages": rng.randint(2, 3)}),
        (0.3, {"seed": rng.randrange(2**31)}),
        (0.2, {"guidanceScale": 1.5}),
        (0.2, {"width": 64, "height": 64}),
        (0.3, {"deterministic": True}),
        (0.1, {"negativePrompt": "order"}),
        (0.2, {"deletionPolicy": "Delete"}),
        (0.05, {"ttlSecondsAfterFinished": rng.randint(5, 20)}),
        (0.05, {"activeDeadlineSeconds": rng.randint(5, 60)}),
        (0.1, {"backoffLimit": rng.randint(0, 1)}),
    ]
    fields: dict[str, Any] = {}
    for chance, field in chances:
        if rng.random() < chance:
            fields |= field
    return fields


def _snake(field: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in field)
