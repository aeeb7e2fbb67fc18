"""Server processes: started in a group of their own, awaited by a health check, stopped for certain."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kubediffusion.local.errors import LocalError, PartFailedError

LAUNCHER = Path(__file__).with_name("launch.py")
READY_SECONDS = 120.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.05

HealthCheck = Callable[[], bool]


def killed_with_parent(command: Sequence[str]) -> list[str]:
    """Return the command to start so that `command` is killed when this process ends.

    The kernel watches the *thread* that starts it: start it from one that stays.
    """
    return [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *command]


def answers(url: str, authority: Path | None = None) -> HealthCheck:
    """Return a health check that passes once a GET of `url` answers 200.

    Args:
        url: What to get; never through a proxy.
        authority: The certificate authority that an https server must be signed by.
    """
    context = ssl.create_default_context(cafile=authority) if authority else None
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=context)] if context else [])
    )

    def check() -> bool:
        try:
            with opener.open(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return check


@dataclass(frozen=True)
class Program:
    """What to run, and how to tell that it serves.

    Attributes:
        name: What a person calls it.
        command: The program and its arguments; no secrets, as everybody on the machine can read them.
        log: Where its output goes; a restart appends.
        healthy: Tells whether it serves.
        environment: All of its environment.
    """

    name: str
    command: Sequence[str]
    log: Path
    healthy: HealthCheck
    environment: Mapping[str, str] = field(default_factory=dict)


class Process:
    """A program that can be started, killed, and started again in the same place."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.program.name

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id, which is that of its process group.

        Raises:
            LocalError: It is not running.
        """
        if self._process is None:
            raise LocalError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start it, without waiting for it to serve."""
        if self.running:
            raise LocalError(f"{self.name} is running already")
        with self.program.log.open("ab") as log:
            self._process = subprocess.Popen(
                killed_with_parent(self.program.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.program.environment),
                start_new_session=True,
            )

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until it serves, for ``seconds`` at most.

        Raises:
            PartFailedError: It ended, or did not serve in time.
        """
        deadline = time.monotonic() + seconds
        while not self.program.healthy():
            self.check()
            if time.monotonic() > deadline:
                raise PartFailedError(self.name, f"did not answer within {seconds:g} s", self.program.log)
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raise `PartFailedError` if it is not running."""
        if self._process is not None and (code := self._process.poll()) is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise PartFailedError(self.name, how, self.program.log)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it as a crash would: SIGKILL."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End it with SIGTERM, and with SIGKILL where that does not do; also what it left behind in its group."""
        if self._process is None:
            return
        try:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        finally:  # also on Ctrl-C while waiting
            self.kill()
