"""Processes start, are seen to be well, and end for certain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kubediffusion.local.errors import PartFailedError
from kubediffusion.local.processes import HealthCheck, Process, Program, killed_with_parent


def a_process(tmp_path: Path, script: str, healthy: HealthCheck = lambda: True) -> Process:
    program = Program("part", ["sh", "-c", script], tmp_path / "log", healthy, {"PATH": os.environ["PATH"]})
    return Process(program)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_ends_before_it_serves_is_reported_with_its_log(tmp_path: Path) -> None:
    process = a_process(tmp_path, "echo no disk left; exit 4", healthy=lambda: False)
    process.start()
    with pytest.raises(PartFailedError, match=r"(?s)part ended with exit code 4.*no disk left"):
        process.wait_ready()


def test_a_process_that_does_not_answer_in_time_is_reported(tmp_path: Path) -> None:
    process = a_process(tmp_path, "exec sleep 100", healthy=lambda: False)
    process.start()
    with pytest.raises(PartFailedError, match="did not answer within"):
        process.wait_ready(seconds=0.1)
    process.stop()


def test_a_killed_process_starts_again(tmp_path: Path) -> None:
    process = a_process(tmp_path, "exec sleep 100")
    process.start()
    first = process.pid
    process.kill()
    assert not process.running
    process.start()
    assert (process.running, process.pid == first) == (True, False)
    process.stop()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = a_process(tmp_path, f"trap '' TERM; touch {ready}; while :; do sleep 0.1; done", healthy=ready.exists)
    process.start()
    process.wait_ready()
    pid = process.pid
    process.stop(seconds=0.2)
    assert not alive(pid)


def test_stopping_takes_the_whole_group_along(tmp_path: Path) -> None:
    child = tmp_path / "child"
    process = a_process(
        tmp_path, f"sleep 100 & echo $! > {child}; wait", healthy=lambda: child.exists() and child.stat().st_size > 0
    )
    process.start()
    process.wait_ready()
    process.stop()
    until(lambda: not alive(int(child.read_text())))


def test_a_process_dies_with_the_one_that_started_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    starter = (
        "import subprocess, sys, time\n"
        "from kubediffusion.local.processes import killed_with_parent\n"
        f"child = subprocess.Popen(killed_with_parent(['sleep', '100']), start_new_session=True)\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(100)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", starter])
    until(lambda: pid_file.exists() and bool(pid_file.read_text()))
    child = int(pid_file.read_text())
    command_line = Path(f"/proc/{child}/cmdline")
    until(lambda: command_line.read_bytes() == b"sleep\x00100\x00")  # it has become the command
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not alive(child))


def test_a_launched_command_feels_broken_pipes() -> None:
    # Python ignores SIGPIPE, which its children would inherit: `yes | head` would then end with an error message.
    answer = subprocess.run(
        killed_with_parent(["bash", "-c", "set -o pipefail; yes | head -1; exit ${PIPESTATUS[0]}"]),
        capture_output=True,
        check=False,
    )
    assert answer.returncode == 128 + signal.SIGPIPE
    assert answer.stderr == b""
