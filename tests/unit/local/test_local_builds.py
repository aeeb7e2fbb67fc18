"""A build that is broken off leaves nothing half-built and nothing running; the next one does not mind it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubediffusion.local.binaries import CLUSTER
from kubediffusion.local.testing import wait_for

# In place of a Go command: "build" writes a program as large as it gets, and then does what the test is about.
GO = """#!/bin/sh
case "$1" in
    env) echo go99.0.0 ;;
    list) echo example.com/package ;;
    build)
        while [ "$1" != -o ]; do shift; done
        echo program >"$2"
        {end}
        ;;
esac
"""
# A compiler is a child of the Go command.
ENDLESS = 'sleep 600 & echo $! >"{pid}"; wait'
ALONE = "exec sleep 600"

Build = Callable[[str], "Command"]


class Command:
    """``make binaries``' command under way."""

    def __init__(self, environment: dict[str, str], output: Path) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kubediffusion.local", "build"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )

    def wait(self) -> tuple[int, str]:
        """Wait for its end, and return its exit code and what it said."""
        return self.process.wait(timeout=60), self._output.read_text()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def build(tmp_path: Path, cache: Path) -> Iterator[Build]:
    """Build everything with a Go command that ends its builds so."""
    running: list[Command] = []
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBEDIFFUSION_CACHE": str(cache)}
    environment.pop("KUBEBUILDER_ASSETS", None)

    def start(end: str) -> Command:
        go = tmp_path / "go"
        go.write_text(GO.format(end=end))
        go.chmod(0o755)
        running.append(Command(environment, tmp_path / "output"))
        return running[-1]

    yield start
    for command in running:
        command.process.kill()
        command.process.wait()


def half_built(cache: Path) -> list[Path]:
    return list(cache.glob("bin/.*.partial/etcd"))


def kept(cache: Path) -> set[str]:
    return {path.name for path in (cache / "bin").iterdir() if not path.name.endswith(".lock")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_broken_off_leaves_nothing(
    build: Build, cache: Path, tmp_path: Path, number: signal.Signals
) -> None:
    pid = tmp_path / "pid"
    command = build(ENDLESS.format(pid=pid))
    compiler = int(wait_for("the compiler", lambda: pid.read_text() if half_built(cache) and pid.exists() else None))
    command.process.send_signal(number)
    code, said = command.wait()
    assert (code, said.splitlines()[-1]) == (128 + signal.SIGINT, "Stopped.")
    wait_for("the compiler to end", lambda: not Path(f"/proc/{compiler}").exists())
    assert kept(cache) == set()


def test_what_a_killed_build_left_is_cleared_away_by_the_next(build: Build, cache: Path) -> None:
    command = build(ALONE)
    wait_for("a half-built program", lambda: half_built(cache))
    command.process.kill()
    command.wait()
    assert half_built(cache)
    code, said = build("").wait()
    assert code == 0, said
    assert kept(cache) == {module.fingerprint(sorted(module.programs)) for module in CLUSTER}


def test_a_build_that_fails_says_how_and_leaves_nothing(build: Build, cache: Path) -> None:
    code, said = build('echo "package.go:1: no such thing"; exit 1').wait()
    assert code == 1
    assert "kubediffusion-local: building etcd failed:" in said
    assert "no such thing" in said
    assert kept(cache) == set()
