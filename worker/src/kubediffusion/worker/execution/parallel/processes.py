"""The processes of the other ranks, as rank 0 sees them: their start, what they are sent, what they answer, their end.

Each has a pipe. What is computed never goes through it, only which call comes next; that a process is gone, or does not
answer, shows there at once or after a bounded time, also while no image is made.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from kubediffusion.worker.engine import BadModelError, EngineLostError
from kubediffusion.worker.settings import Settings

logger = logging.getLogger(__name__)

GRACE_SECONDS = 15.0
"""Seconds for the engine's thread to notice that a rank is lost; one that waits for it on the device never does."""

_POLL_SECONDS = 1.0
"""Seconds between two looks at how long an answer has been awaited."""


@dataclass(frozen=True)
class RankSettings:
    """What rank 0 hands another rank at its start.

    Attributes:
        settings: The worker's.
        device: Kind of device.
        meeting: A file that does not exist yet, by which the ranks find each other.
        hidden: Libraries that are not imported.
    """

    settings: Settings
    device: str
    meeting: Path
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Answer:
    """What a rank says of a call.

    Attributes:
        number: The call.
        error: What it raised; None for nothing.
        bad_model: Whether the model cannot be loaded, and a restart would not change that.
    """

    number: int
    error: str | None = None
    bad_model: bool = False


@dataclass(eq=False)
class _Rank:
    """Another rank.

    Attributes:
        number: From 1.
        process: The process.
        pipe: To it.
        awaited: The calls that it has not answered, and when each was sent.
    """

    number: int
    process: BaseProcess
    pipe: Connection
    awaited: dict[int, float] = field(default_factory=dict)


_NUMBER = struct.Struct("!q")


def receive(pipe: Connection) -> tuple[int, Any]:
    """Wait for the next message from rank 0, and return its number and the message.

    Raises:
        EOFError: Rank 0 is gone.
    """
    data = pipe.recv_bytes()
    (number,) = _NUMBER.unpack_from(data)
    return number, pickle.loads(memoryview(data)[_NUMBER.size :])  # noqa: S301 - from rank 0 alone


def end_with_parent() -> None:
    """Have this process end when the one that has started it has ended, whatever it waits for then."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("another rank is started by rank 0")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


Follow = Callable[[int, Connection, Any], None]
"""What another rank runs: given its number, the pipe from rank 0, and what rank 0 hands it."""


class RankProcesses:
    """Starts the other ranks, and watches them until :meth:`close`.

    Args:
        follow: A function of a module, which the processes run.
        given: Handed to each of them; it can be pickled.
        size: Ranks in all.
        timeout: Seconds within which a rank answers.
        end: Ends this process with a reason, where the engine's thread cannot; it does not return.
    """

    def __init__(self, follow: Follow, given: Any, size: int, *, timeout: float, end: Callable[[str], object]) -> None:
        self.lost: str | None = None
        self._timeout = timeout
        self._end = end
        self._lock = threading.Condition()
        self._sent = 0
        # Of the calls whose answers somebody waits for.
        self._answers: dict[int, dict[int, Answer]] = {}
        self._wake: Callable[[], None] | None = None
        self._busy = 0
        self._closed = False
        # Not forked: neither threads nor a device's context survive that.
        context = multiprocessing.get_context("spawn")
        self._ranks = []
        for number in range(1, size):
            ours, theirs = context.Pipe()
            name = f"rank-{number}"
            process = context.Process(target=follow, args=(number, theirs, given), name=name, daemon=True)
            process.start()
            theirs.close()
            self._ranks.append(_Rank(number, process, ours))
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    @property
    def pids(self) -> list[int]:
        """The processes of the other ranks, by rank."""
        return [rank.process.pid or 0 for rank in self._ranks]

    def send(self, message: Any, *, asked: bool = False, bounded: bool = True) -> int:
        """Send a message to all other ranks, and return its number; each is to answer it.

        Args:
            message: It can be pickled.
            asked: Whether :meth:`answers` is called for it; else a rank that answers with an error is lost.
            bounded: Whether a rank that does not answer in time is lost.

        Raises:
            EngineLostError: A rank is lost.
            Exception: The message cannot be pickled.
        """
        self.check()
        data = ForkingPickler.dumps(message)
        with self._lock:
            self._sent += 1
            number, now = self._sent, time.monotonic()
            if asked:
                self._answers[number] = {}
            for rank in self._ranks if bounded else ():
                rank.awaited[number] = now
        try:
            for rank in self._ranks:
                rank.pipe.send_bytes(_NUMBER.pack(number) + data)
        except OSError as error:
            self._lose(f"{rank.process.name} cannot be told what comes next: {error}")
        self.check()
        return number

    def answers(self, number: int) -> list[str | None]:
        """Wait until all ranks have answered a message, and return what each raised; None for nothing.

        Raises:
            BadModelError: The model cannot be loaded there, and a restart would not change that.
            EngineLostError: A rank is lost.
        """
        with self._lock:
            self._lock.wait_for(lambda: self.lost is not None or len(self._answers[number]) == len(self._ranks))
            self.check()
            found = self._answers.pop(number)
        for rank, answer in sorted(found.items()):
            if answer.bad_model:
                raise BadModelError(f"on rank {rank}: {answer.error}")
        return [answer.error for _, answer in sorted(found.items())]

    def check(self) -> None:
        """Check that all ranks are there.

        Raises:
            EngineLostError: One is not.
        """
        if self.lost is not None:
            raise EngineLostError(self.lost)

    def when_lost(self, wake: Callable[[], None]) -> None:
        """Have a function called, from any thread, once a rank is lost; it takes the place of an earlier one."""
        self._wake = wake
        if self.lost is not None:
            wake()

    def __enter__(self) -> None:
        """Note that the engine's thread now waits for the ranks."""
        self._busy += 1

    def __exit__(self, *_: object) -> None:
        """Note that it does no more."""
        self._busy -= 1

    def lose(self, reason: str) -> EngineLostError:
        """Give the ranks up, and return the error that says so: where one of them has ended, that it has."""
        with self._lock:
            # Its end may show in a broken call before it shows here.
            self._lock.wait_for(lambda: self.lost is not None, _POLL_SECONDS)
        self._lose(reason)
        return EngineLostError(self.lost)

    def close(self) -> None:
        """End the processes, and wait until they are gone."""
        self._closed = True
        for rank in self._ranks:
            rank.process.kill()
            rank.process.join()

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self.lost is not None or self._closed:
                return
            self.lost = reason
            self._lock.notify_all()
        logger.error("a rank is lost: %s", reason)
        if self._wake is not None:
            self._wake()
        timer = threading.Timer(GRACE_SECONDS, self._end_stuck)
        timer.daemon = True
        timer.start()

    def _end_stuck(self) -> None:
        if self._busy and not self._closed and self.lost is not None:
            self._end(self.lost)

    def _watch(self) -> None:
        """Take in answers, and find out what is dead or silent."""
        pipes: dict[Any, _Rank] = {rank.pipe: rank for rank in self._ranks}
        while not self._closed and self.lost is None:
            for ready in wait([*pipes, *(rank.process.sentinel for rank in self._ranks)], _POLL_SECONDS):
                if (rank := pipes.get(ready)) is not None:
                    self._take_in(rank)
            for rank in self._ranks:
                if not rank.process.is_alive():
                    self._lose(f"{rank.process.name} ended ({_how(rank.process.exitcode)})")
            self._find_silent()

    def _take_in(self, rank: _Rank) -> None:
        try:
            answer: Answer = rank.pipe.recv()
        except (EOFError, OSError):
            rank.process.join(_POLL_SECONDS)
            self._lose(f"{rank.process.name} ended ({_how(rank.process.exitcode)})")
            return
        with self._lock:
            rank.awaited.pop(answer.number, None)
            asked = answer.number in self._answers
            if asked:
                self._answers[answer.number][rank.number] = answer
                self._lock.notify_all()
        if answer.error is None:
            return
        reason = f"{rank.process.name} failed: {answer.error}"
        if not asked:
            self._lose(reason)
            return
        # Where the others did not fail too they wait for it, rank 0 among them.
        timer = threading.Timer(GRACE_SECONDS, self._lose_unheard, (answer.number, reason))
        timer.daemon = True
        timer.start()

    def _lose_unheard(self, number: int, reason: str) -> None:
        if number in self._answers:
            self._lose(reason)

    def _find_silent(self) -> None:
        with self._lock:
            sent = {rank: min(rank.awaited.values()) for rank in self._ranks if rank.awaited}
        for rank, since in sent.items():
            if time.monotonic() - since > self._timeout:
                self._lose(f"{rank.process.name} has not answered for {self._timeout:g} s")


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "its pipe is closed"
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
