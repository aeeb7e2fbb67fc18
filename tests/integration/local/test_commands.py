"""What ``make up`` and ``make demo`` run, run as a person would: from outside, with signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubediffusion.local.reservations import Reservations
from kubediffusion.local.testing import wait_for

START_SECONDS = 180.0


@pytest.fixture
def port() -> Iterator[int]:
    with Reservations() as reservations:
        yield reservations.port()


class Command:
    """A command under way, with all the processes that it started."""

    def __init__(self, output: Path, *arguments: str | Path | int) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kubediffusion.local", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(output.parent)},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def descendants(self) -> dict[int, str]:
        """Return the processes that it or its children started, with their commands."""
        children: dict[int, list[int]] = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(status.read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(status.parent.name))
        found, queue = {}, [self.process.pid]
        while queue:
            for pid in children.get(queue.pop(), []):
                if command := command_of(pid):  # a process that has just ended has none
                    found[pid] = command
                queue.append(pid)
        return found

    def wait(self) -> int:
        return self.process.wait(timeout=START_SECONDS)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Run a command whose temporary files lie in the test's folder, and end it with the test."""
    running: list[Command] = []

    def start(*arguments: str | Path | int) -> Command:
        # A folder of its own, and a short one: sockets and such have short paths.
        running.append(Command(Path(tempfile.mkdtemp(dir=tmp_path)) / "output", *arguments))
        return running[-1]

    yield start
    for command in running:
        command.process.kill()
        command.process.wait()


def assert_all_end(processes: dict[int, str]) -> None:
    def all_gone() -> bool:
        # A process id may be another's by now, so commands are compared too.
        return not any(command and command_of(pid) == command for pid, command in processes.items())

    wait_for("every process to end", all_gone)


def test_the_demo_writes_the_image_and_leaves_nothing(run: Callable[..., Command], port: int, tmp_path: Path) -> None:
    image = tmp_path / "astronaut.png"
    command = run("demo", f"--port={port}", f"--image={image}")
    seen: dict[int, str] = {}

    def ended() -> bool:
        seen.update(command.descendants())
        return command.process.poll() is not None

    wait_for("the demo to end", ended, START_SECONDS)
    assert command.process.returncode == 0, command.output
    assert image.read_bytes().startswith(b"\x89PNG")
    assert str(image) in command.output
    for row in ("generationjob.kubediffusion.io/", "diffusionmodel.kubediffusion.io/", "job.batch/", "pod/"):
        assert row in command.output
    assert any("kube-apiserver" in process for process in seen.values())
    assert_all_end(seen)
    assert not list(tmp_path.glob("*/kubediffusion-*"))


def started(command: Command, part: str) -> Callable[[], dict[int, str] | None]:
    """Return a condition: a part runs. Its value is all that runs then."""

    def condition() -> dict[int, str] | None:
        assert command.process.poll() is None, command.output
        processes = command.descendants()
        return processes if any(part in process for process in processes.values()) else None

    return condition


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (signal.SIGINT, "etcd"),
        (signal.SIGTERM, "etcd"),
        (signal.SIGINT, "kube-scheduler"),
        (signal.SIGKILL, "kubediffusion-operator"),
    ],
)
def test_whatever_ends_it_at_whatever_moment_nothing_is_left(
    run: Callable[..., Command], port: int, number: signal.Signals, part: str
) -> None:
    command = run("up", f"--port={port}")
    processes = wait_for(f"{part} to run", started(command, part), START_SECONDS)
    command.process.send_signal(number)
    command.wait()
    assert_all_end(processes)


def test_a_part_that_ends_is_named_and_takes_the_rest_along(run: Callable[..., Command], port: int) -> None:
    command = run("up", f"--port={port}")
    processes = wait_for("the scheduler to run", started(command, "/kube-scheduler "), START_SECONDS)
    (victim,) = (pid for pid, process in processes.items() if "/kube-scheduler " in process)
    os.kill(victim, signal.SIGKILL)
    assert command.wait() == 1
    assert "kube-scheduler was killed by SIGKILL; its log is" in command.output
    assert_all_end(processes)


def test_a_port_that_is_taken_is_named(run: Callable[..., Command], port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        command = run("up", f"--port={port}")
        assert command.wait() == 1
    assert f"port {port} is taken" in command.output


def test_a_folder_without_a_model_is_named(run: Callable[..., Command], port: int, tmp_path: Path) -> None:
    command = run("up", f"--port={port}", f"--model={tmp_path}")
    assert command.wait() == 1
    assert f"{tmp_path} holds no diffusers pipeline" in command.output
