"""Asks a probe's question once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from kubediffusion.local.node.objects import Container, Exec, HTTPGet, Probe, TCPSocket
from kubediffusion.local.processes import killed_with_parent


@dataclass(frozen=True)
class Target:
    """A running container, as a probe sees it."""

    container: Container
    pod_ip: str
    environment: Mapping[str, str]
    folder: Path
    translate: Callable[[str], str]


async def check(probe: Probe, target: Target) -> str | None:
    """Ask once; returns nothing when the probe passes and the reason when it does not."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            if probe.http_get:
                return await _http(probe.http_get, target)
            if probe.tcp_socket:
                await _tcp(probe.tcp_socket, target)
                return None
            return await _command(probe.exec or Exec(), target)
    except TimeoutError:
        return f"no answer within {probe.timeout_seconds} s"
    except (OSError, aiohttp.ClientError, ValueError) as error:
        return str(error) or type(error).__name__


async def _http(get: HTTPGet, target: Target) -> str | None:
    port = _port(get.port, target.container)
    url = f"{get.scheme.lower()}://{get.host or target.pod_ip}:{port}/{get.path.lstrip('/')}"
    headers = {header.name: header.value for header in get.http_headers}
    # A session of its own, as kubelet: no connection is kept, so a server that went away is seen to be away.
    # Certificates are not verified by kubelet either.
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.get(url, headers=headers, ssl=False, allow_redirects=False) as answer,
    ):
        passed = 200 <= answer.status < 400
        return None if passed else f"HTTP probe failed with statuscode: {answer.status}"


async def _tcp(socket: TCPSocket, target: Target) -> None:
    _, writer = await asyncio.open_connection(socket.host or target.pod_ip, _port(socket.port, target.container))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _command(question: Exec, target: Target) -> str | None:
    process = await asyncio.create_subprocess_exec(
        *killed_with_parent([target.translate(word) for word in question.command]),
        cwd=target.folder,
        env=dict(target.environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return None if process.returncode == 0 else output.decode(errors="replace").strip() or "the command failed"


def _port(port: int | str, container: Container) -> int:
    if isinstance(port, int):
        return port
    for named in container.ports:
        if named.name == port:
            return named.container_port
    raise ValueError(f"container {container.name} has no port named {port}")
