"""Requests over kept connections, as fast as the server answers: in a process of its own, to measure nothing else."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import cast

import uvloop


class Poller(asyncio.Protocol):
    """One connection that asks again whenever it is answered."""

    def __init__(self, request: bytes, deadline: float) -> None:
        self.request = request
        self.deadline = deadline
        self.wrong = 0
        self.seconds: list[float] = []
        self.buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has asyncio's interface, and none of its classes.
        self.transport = cast("asyncio.WriteTransport", transport)
        self.ask()

    def ask(self) -> None:
        self.asked = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        self.seconds.append(now - self.asked)
        self.wrong += not head.startswith(b"HTTP/1.1 200")
        self.buffer = b""
        if now < self.deadline:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self.done.set_result(None)


async def main(port: int, path: str, connections: int, seconds: float) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    pollers = [
        (await loop.create_connection(lambda: Poller(request, began + seconds), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    for poller in pollers:
        await poller.done
    elapsed = time.perf_counter() - began
    times = sorted(second for poller in pollers for second in poller.seconds)
    wrong = sum(poller.wrong for poller in pollers)
    sys.stdout.write(f"{len(times)} {elapsed} {wrong} {times[len(times) * 99 // 100]}\n")


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
