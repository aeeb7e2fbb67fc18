"""Ports and loopback networks that stay ours for as long as this process lives.

A port taken from the kernel (bind to 0, look, close) may be handed to an outgoing connection a moment later, and the
tests restart servers on the port they had. So ports come from below the kernel's ephemeral range, and a socket of that
name keeps other clusters away from them, also between a server's stop and its start. Its address is abstract: it lies
in no folder, reaches as far as the loopback device does, and goes with the process that holds it.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from kubediffusion.local.errors import LocalError

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 20_000
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Reservations:
    """Ports and networks that no other `Reservations` on this machine holds."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def port(self) -> int:
        """Reserve a TCP port of 127.0.0.1 on which nothing listens."""
        ports = list(range(LOWEST_PORT, _first_ephemeral_port()))
        random.shuffle(ports)
        return int(self._first_free("port", map(str, ports), lambda name: _can_listen(int(name))))

    def network(self) -> str:
        """Reserve the first two bytes of a /16 of loopback addresses, as in "127.42"."""
        seconds = list(range(1, 255))
        random.shuffle(seconds)
        return self._first_free("network", (f"127.{second}" for second in seconds), lambda _: True)

    def release(self) -> None:
        """Release everything that was reserved."""
        while self._held:
            self._held.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _first_free(self, kind: str, names: Iterable[str], usable: Callable[[str], bool]) -> str:
        for name in names:
            held = _hold(f"{kind}-{name}")
            if held is None:
                continue
            if usable(name):
                self._held.append(held)
                return name
            held.close()
        raise LocalError(f"every {kind} of 127.0.0.0/8 that a local cluster may use is taken")


def _hold(name: str) -> socket.socket | None:
    """Bind the abstract address of a name, unless somebody holds it."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0kubediffusion/{name}")
    except OSError as error:
        held.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return held


def listening(port: int, host: str = LOOPBACK) -> bool:
    """Return whether something listens on a TCP port already."""
    return not _can_listen(port, host)


def _can_listen(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket() as probe:
        # As servers do: a connection of a former run in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _first_ephemeral_port() -> int:
    first = int(EPHEMERAL_RANGE.read_text().split()[0])
    # A machine may have widened the range downwards; then collisions are only unlikely.
    return first if first > LOWEST_PORT + 1_000 else 32_768
