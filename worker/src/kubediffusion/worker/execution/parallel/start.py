"""The first code of another rank's process. It imports no torch before it is known what else is not to be imported."""

from __future__ import annotations

from multiprocessing.connection import Connection

from kubediffusion.worker.execution.parallel.processes import RankSettings, end_with_parent
from kubediffusion.worker.optional_libraries import hide_libraries


def start_rank(rank: int, pipe: Connection, given: RankSettings) -> None:
    """Run another rank until rank 0 is gone.

    Args:
        rank: Its number.
        pipe: From rank 0.
        given: What it is started with.
    """
    end_with_parent()
    hide_libraries(given.hidden)
    from kubediffusion.worker.execution.parallel.follower import follow

    follow(rank, pipe, given)
