"""What other ranks run in tests of their processes: each does one thing as no model would."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from typing import Any

from kubediffusion.worker.execution.parallel.processes import Answer


def answer(rank: int, pipe: Connection, _given: Any) -> None:
    """Answer each message: with an error where it is the rank's number, else with none."""
    try:
        while True:
            number, message = pipe.recv()
            pipe.send(Answer(number, "no memory" if message in {rank, "all"} else None, bad_model=message == "bad"))
    except EOFError:
        pass


def end(_rank: int, pipe: Connection, _given: Any) -> None:
    """End at the first message."""
    pipe.recv()
    os._exit(3)


def be_silent(_rank: int, pipe: Connection, _given: Any) -> None:
    """Take messages, and answer none."""
    pipe.recv()
    time.sleep(3600)
