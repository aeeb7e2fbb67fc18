"""One run of a container's command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubediffusion.local.processes import killed_with_parent

# What container runtimes report for a command that cannot be started.
CANNOT_START = 128
KILLED_BY_SIGNAL = 128


class CannotStartError(Exception):
    """The command is not there, or is not a program."""


@dataclass(frozen=True)
class Launch:
    """All that a run needs.

    Attributes:
        command: The program, looked up on the PATH of `environment`, and its arguments.
        environment: All of its environment.
        folder: Where it starts.
        log: Where its output goes.
        message: The file that it may leave its last words in.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    message: Path


class ContainerProcess:
    """A process in a session of its own, which dies with the node."""

    def __init__(self, launch: Launch) -> None:
        name = launch.command[0]
        # A path is one from the working directory on; a name is looked for.
        program = shutil.which(launch.folder / name if "/" in name else name, path=launch.environment.get("PATH"))
        if program is None:
            raise CannotStartError(f'"{name}": there is no such program on the PATH')
        if not launch.folder.is_dir():
            raise CannotStartError(f"the working directory {launch.folder} does not exist")
        with launch.log.open("ab") as log:
            self._process = subprocess.Popen(
                killed_with_parent([str(program), *launch.command[1:]]),
                cwd=launch.folder,
                env=dict(launch.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._ended = asyncio.Event()
        # Readable once the process has ended; no thread, no signal handler.
        self._descriptor = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_end)

    @property
    def pid(self) -> int:
        """The process id, which is also that of the process group and of the session."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for its end, and return the exit code as a container runtime tells it: 137 after SIGKILL."""
        await self._ended.wait()
        code = self._process.returncode
        return KILLED_BY_SIGNAL - code if code < 0 else code

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end, and end it when the time of grace is over."""
        self._signal_main(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), grace_seconds)
        self.kill()
        await self._ended.wait()

    def kill(self) -> None:
        """End it, and every process that it started and left in its group."""
        if self._process.returncode is None:  # afterwards its id may be another's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _signal_main(self, number: signal.Signals) -> None:
        # As a container runtime does: the first process is told, and tells its children or does not.
        if not self._ended.is_set():
            os.kill(self.pid, number)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        # As when a container's first process ends: nothing of it stays. Before the process is waited for, since its
        # id, which is the group's, may be another's afterwards.
        self.kill()
        self._process.wait()
        self._ended.set()
