"""Containers of a worker's Pod, as its node tells of them."""

from __future__ import annotations

from collections.abc import Iterable

from kubediffusion.resources.schema import Schema, Time

CONTAINER = "worker"
"""Name of the container in a worker Pod."""

ON_ITS_WAY = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons of a container that waits as each does at first; any other says what keeps it from starting."""


class Terminated(Schema):
    """How a container ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    finished_at: Time | None = None

    @property
    def how(self) -> str:
        """How it ended, in words, for people."""
        detail = self.message.strip() or self.reason
        return f"exit code {self.exit_code}" + (f": {detail}" if detail else "")


class ContainerWaiting(Schema):
    """Why a container does not run."""

    reason: str = ""
    message: str = ""


class ContainerState(Schema):
    """State of a container; that it runs does not matter here."""

    waiting: ContainerWaiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(Schema):
    """What kubelet says of one container: the part of ``status.containerStatuses`` of a Pod that is read here."""

    name: str
    state: ContainerState = ContainerState()
    ready: bool = False
    restart_count: int = 0

    @property
    def obstacle(self) -> str:
        """What keeps it from being started; empty where it has started, or is on its way."""
        waiting = self.state.waiting
        if waiting is None or waiting.reason in ON_ITS_WAY:
            return ""
        return f"{waiting.reason}: {waiting.message}" if waiting.message else waiting.reason


NOTHING_SAID = ContainerStatus(name=CONTAINER)
"""What is known of a worker's container before the node has said anything of it."""


def why_waiting(own: ContainerStatus, before: Iterable[ContainerStatus]) -> str:
    """Return why a worker's container cannot be started; empty while nothing is known to be in its way.

    Args:
        own: The worker's container.
        before: Containers that must have started or ended before it.
    """
    if own.state.waiting is None:
        return ""
    return own.obstacle or next((f"container {each.name}: {each.obstacle}" for each in before if each.obstacle), "")


def first_failure(containers: Iterable[ContainerStatus]) -> str:
    """Return how the first of some containers failed that did; empty where none has."""
    ended = ((each.name, each.state.terminated) for each in containers)
    failed = (f"container {name}: {end.how}" for name, end in ended if end is not None and end.exit_code != 0)
    return next(failed, "")
