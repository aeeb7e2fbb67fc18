"""The processes of other ranks: what they answer, and that one that is gone or silent is found out in bounded time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kubediffusion.worker.engine import BadModelError, EngineLostError
from kubediffusion.worker.execution.parallel import processes
from kubediffusion.worker.execution.parallel.processes import RankProcesses
from unit.worker import rank_followers

Start = Callable[..., RankProcesses]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start ranks that end with the test."""
    started: list[RankProcesses] = []

    def make(follow: Any, size: int = 2, timeout: float = 600, end: Any = lambda _: None) -> RankProcesses:
        started.append(RankProcesses(follow, None, size, timeout=timeout, end=end))
        return started[-1]

    yield make
    for ranks in started:
        ranks.close()


def test_each_rank_answers_for_itself(start: Start) -> None:
    ranks = start(rank_followers.answer, size=3)
    assert ranks.answers(ranks.send("anything", asked=True)) == [None, None]
    assert ranks.answers(ranks.send("all", asked=True)) == ["no memory", "no memory"]
    assert ranks.lost is None
    with pytest.raises(BadModelError, match="on rank 1"):
        ranks.answers(ranks.send("bad", asked=True))


def test_a_rank_that_fails_where_nobody_asked_is_lost(start: Start) -> None:
    ranks, woken = start(rank_followers.answer, size=3), threading.Event()
    ranks.when_lost(woken.set)
    ranks.send(2)
    assert woken.wait(60)
    with pytest.raises(EngineLostError, match="rank-2 failed: no memory"):
        ranks.check()


def test_a_rank_that_fails_alone_while_others_wait_for_it_is_lost(start: Start, monkeypatch: Any) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.05)
    ended = threading.Event()
    ranks = start(rank_followers.answer, size=3, end=lambda _: ended.set())
    with ranks:
        # As if the engine's thread were in the call, and never came to ask.
        ranks.send(1, asked=True)
        assert ended.wait(60)
    assert ranks.lost == "rank-1 failed: no memory"


def test_a_rank_that_ends_is_lost_and_says_how(start: Start) -> None:
    ranks = start(rank_followers.end)
    with pytest.raises(EngineLostError, match=r"rank-1 ended \(exit code 3\)"):
        ranks.answers(ranks.send("anything", asked=True))
    with pytest.raises(EngineLostError):
        ranks.send("more")


def test_a_rank_that_ends_while_nobody_calls_it_is_lost(start: Start) -> None:
    ranks, woken = start(rank_followers.be_silent), threading.Event()
    ranks.when_lost(woken.set)
    os.kill(ranks.pids[0], signal.SIGKILL)
    assert woken.wait(60)
    assert ranks.lost == "rank-1 ended (signal 9)"


def test_a_rank_that_is_silent_is_lost_and_a_thread_that_waits_for_it_is_ended_with_the_process(
    start: Start, monkeypatch: Any
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.05)
    ended: list[str] = []
    done = threading.Event()

    def end(reason: str) -> None:
        ended.append(reason)
        done.set()

    ranks = start(rank_followers.be_silent, timeout=0.5, end=end)
    with ranks:
        ranks.send("anything")
        assert done.wait(60)
    assert ended == ["rank-1 has not answered for 0.5 s"]


def test_a_message_that_cannot_be_sent_is_an_error_of_its_own(start: Start) -> None:
    ranks = start(rank_followers.answer, timeout=0.2)
    with pytest.raises(Exception, match="pickle"):
        ranks.send(lambda: None)
    # Nobody waits for an answer to it.
    assert ranks.answers(ranks.send("anything", asked=True, bounded=False)) == [None]
    assert ranks.lost is None


def test_a_rank_ends_with_rank_0() -> None:
    code = "from unit.worker import rank_followers; rank_followers.leave_one_behind()"
    folder = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": folder},
    ) as rank_0:
        assert rank_0.stdin is not None
        assert rank_0.stdout is not None
        rank = psutil.Process(int(rank_0.stdout.readline()))
        rank_0.stdin.write("go\n")
        rank_0.stdin.flush()
        rank_0.wait()
        psutil.wait_procs([rank], timeout=60)
        assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE
