"""What a run leaves behind for the checker: raw objects and bytes, nothing interpreted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

Object = dict[str, Any]
"""An object of the Kubernetes API, as JSON."""


@dataclass(frozen=True)
class Version:
    """One state of one object, as a watch told it.

    Attributes:
        kind: Its kind.
        change: ADDED, MODIFIED or DELETED.
        object: The object; of a deleted one, its last state.
        revision: Its resource version. One store numbers all kinds, so revisions tell what came first.
        gap: The watch had to list anew: versions may be missing between this one and the one before.
    """

    kind: str
    change: str
    object: Object
    revision: int
    gap: bool = False

    @property
    def uid(self) -> str:
        """The object's identity."""
        return str(self.object["metadata"]["uid"])

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.object["metadata"]["name"])


@dataclass(frozen=True)
class Memory:
    """What a part held at a moment.

    Attributes:
        part: Which part.
        pid: Which process of it: a restart begins anew.
        finished: Jobs that had finished by then.
        bytes: Its resident set.
    """

    part: str
    pid: int
    finished: int
    bytes: int


@dataclass(frozen=True)
class Pace:
    """How fast the jobs of a namespace ended while a fault struck another one.

    Attributes:
        fault: The fault.
        without: Seconds from creation to end of each job, before the fault.
        beside: The same of as many jobs that came while the fault lasted.
    """

    fault: str
    without: tuple[float, ...]
    beside: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times as long jobs took beside the fault, by their means."""
        return fmean(self.beside) / fmean(self.without)


@dataclass(frozen=True)
class Span:
    """A span of time.

    Attributes:
        began: On the monotonic clock of the run's process.
        ended: On the same.
    """

    began: float
    ended: float

    def overlaps(self, other: Span) -> bool:
        """Return whether the two have a moment in common."""
        return self.began <= other.ended and other.began <= self.ended


@dataclass
class Evidence:
    """All of a run.

    Attributes:
        namespace: Where it took place.
        bucket: Where images lie.
        prefix: What their keys begin with.
        versions: Every state of every GenerationJob, Pod and batch/v1 Job of the namespace.
        accepted: Names of the jobs whose creation was confirmed to a client.
        cancelled: Names of the jobs whose cancellation was confirmed.
        deleted: Names of the jobs that a client has asked to delete.
        lives: Of the jobs whose deletion was confirmed: from the confirmation of creation to that of deletion.
        gaps: When the recorder did not see what happened to jobs.
        stored: Objects of the bucket when the last job had ended, by key.
        kept: Keys of the bucket after every job had been deleted.
        remains: What there still was after everything had been taken down, in words.
        memory: Samples of the parts' memory.
        guilty: Names of the jobs that were made to fail: their own worker exits with them.
        paces: How fast this namespace's jobs ended beside each fault of another one.
    """

    namespace: str
    bucket: str
    prefix: str
    versions: list[Version] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    lives: dict[str, Span] = field(default_factory=dict)
    gaps: list[Span] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    remains: list[str] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    guilty: set[str] = field(default_factory=set)
    paces: list[Pace] = field(default_factory=list)

    @cached_property
    def jobs(self) -> dict[str, list[Version]]:
        """Every state of every GenerationJob, by uid, in order."""
        return _by_uid(version for version in self.versions if version.kind == "GenerationJob")

    @cached_property
    def pods(self) -> dict[str, list[Version]]:
        """Every state of every Pod, by name, in order."""
        found: dict[str, list[Version]] = defaultdict(list)
        for version in sorted(self.versions, key=lambda version: version.revision):
            if version.kind == "Pod":
                found[version.name].append(version)
        return found

    @cached_property
    def batch_jobs(self) -> dict[str, list[Version]]:
        """Every state of every batch/v1 Job, by uid, in order."""
        return _by_uid(version for version in self.versions if version.kind == "Job")


def _by_uid(versions: Iterable[Version]) -> dict[str, list[Version]]:
    found: dict[str, list[Version]] = defaultdict(list)
    for version in sorted(versions, key=lambda version: version.revision):
        found[version.uid].append(version)
    return found
