"""What other ranks run in tests of their processes: each does one thing as no model would."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from kubediffusion.worker.execution.parallel.processes import Answer, RankProcesses, end_with_parent, receive


def answer(rank: int, pipe: Connection, _given: Any) -> None:
    """Answer each message: with an error where it is the rank's number, else with none."""
    try:
        while True:
            number, message = receive(pipe)
            pipe.send(Answer(number, "no memory" if message in {rank, "all"} else None, bad_model=message == "bad"))
    except EOFError:
        pass


def end(_rank: int, pipe: Connection, _given: Any) -> None:
    """End at the first message."""
    receive(pipe)
    os._exit(3)


def be_silent(_rank: int, pipe: Connection, _given: Any) -> None:
    """Take messages, and answer none."""
    receive(pipe)
    time.sleep(3600)


def hang_with_parent(_rank: int, pipe: Connection, _given: Any) -> None:
    """Say that it is there, and hang; but not without rank 0."""
    end_with_parent()
    pipe.send(Answer(0))
    time.sleep(3600)


def leave_one_behind() -> None:
    """Start another rank, print its process, and end as a process does that is killed."""
    ranks = RankProcesses(hang_with_parent, None, 2, timeout=600, end=print)
    sys.stdout.write(f"{ranks.pids[0]}\n")
    sys.stdout.flush()
    sys.stdin.readline()
    os._exit(9)
