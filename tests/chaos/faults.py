"""Which faults strike when: a pure function of a seed. What each does is in :mod:`chaos.injectors`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """A fault. The value is how tables name it."""

    OPERATOR_KILLED = "operator killed"
    API_KILLED = "API killed"
    WORKER_KILLED = "worker killed"
    WORKER_KILLED_UNREPORTED = "worker killed between upload and report"
    WORKER_DELETED = "worker's Pod deleted"
    WORKER_FROZEN = "worker frozen"
    WORKER_FROZEN_LONG = "worker frozen until its liveness probe fails"
    WORKER_CUT_OFF = "worker cut off from the API server"
    WORKER_ZOMBIE = "worker given up and thawed"
    WORKER_DISK_FULL = "workers' disk full"
    ETCD_KILLED = "etcd killed"
    APISERVER_KILLED = "kube-apiserver killed"
    STORAGE_KILLED = "S3 killed"
    STORAGE_SLOW = "S3 slow"
    STORAGE_ERRORS = "S3 answers 500"
    STORAGE_DENIES = "S3 answers 403"
    STORAGE_BREAKS_OFF = "S3's answers are lost"
    WATCHES_GONE = "410 Gone on every watch"
    WATCHES_JUMBLED = "watch events twice and out of order"
    TOO_MANY_REQUESTS = "429 from the API server"
    ANSWERS_LOST = "the API server's answers are lost"
    CLOCK_STEPPED = "operator's and workers' clocks stepped"


class TenantKind(StrEnum):
    """A fault in one namespace, which the jobs of others must not feel. The value is how tables name it."""

    STATUS_DENIED = "a policy denies status"
    PREFIX_DENIED = "storage denies one prefix"
    POISONOUS_JOB = "a job makes its worker exit"
    WORKER_NEVER_STARTS = "a worker never finishes loading"
    WORKER_NOT_ADMITTED = "a worker's Pod cannot be created"
    NAMESPACE_DELETED = "a namespace is deleted while its jobs run"
    LARGEST_OBJECTS = "jobs and models of the largest size"


UNMET: dict[TenantKind, str] = {}
"""Faults whose laws the parts are not known to keep, with the reason: none strikes unless it is asked for."""

SECONDS: dict[Kind, tuple[float, float]] = {
    Kind.WORKER_FROZEN: (5.0, 15.0),
    # Six probes, ten seconds apart, fail before a worker is given up; then come its time of grace and SIGKILL.
    Kind.WORKER_FROZEN_LONG: (100.0, 110.0),
    Kind.WORKER_CUT_OFF: (5.0, 15.0),
    Kind.WORKER_DISK_FULL: (5.0, 15.0),
    Kind.STORAGE_KILLED: (3.0, 12.0),
    Kind.STORAGE_SLOW: (5.0, 12.0),
    Kind.STORAGE_ERRORS: (5.0, 12.0),
    Kind.STORAGE_DENIES: (5.0, 12.0),
    Kind.STORAGE_BREAKS_OFF: (5.0, 12.0),
    Kind.WATCHES_GONE: (5.0, 12.0),
    Kind.WATCHES_JUMBLED: (10.0, 20.0),
    Kind.TOO_MANY_REQUESTS: (5.0, 12.0),
    Kind.ANSWERS_LOST: (5.0, 12.0),
    Kind.CLOCK_STEPPED: (10.0, 20.0),
}
"""How long a fault lasts, at least and at most; what is not here is over at once."""

LAST = 0.9
"""After so much of the work no fault begins: what follows shows that the system is whole again."""


@dataclass(frozen=True)
class Fault:
    """A fault at a moment.

    Attributes:
        kind: What happens.
        finished: How many jobs have finished when it does.
        seconds: How long it lasts.
        number: Seeds what the fault itself leaves to chance, such as which worker it hits.
    """

    kind: Kind
    finished: int
    seconds: float
    number: int


def schedule(seed: int, jobs: int, count: int, kinds: Sequence[Kind]) -> list[Fault]:
    """Return the faults of a run, in order.

    Args:
        seed: The same seed gives the same faults.
        jobs: Jobs of the run, over which the faults are spread.
        count: How many faults; each kind comes once before any comes twice.
        kinds: Which kinds.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible, no secret
    chosen: list[Kind] = []
    while len(chosen) < count:
        chosen += rng.sample(list(kinds), min(len(kinds), count - len(chosen)))
    step = jobs * LAST / max(count, 1)
    return [
        Fault(
            kind=kind,
            finished=int(step * (place + rng.random())),
            seconds=round(rng.uniform(*SECONDS.get(kind, (0.0, 0.0))), 1),
            number=rng.randrange(2**32),
        )
        for place, kind in enumerate(chosen)
    ]
