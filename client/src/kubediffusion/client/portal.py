"""Runs coroutines for callers that have no event loop: on one of its own, in a thread of its own.

That works everywhere, also inside another event loop as notebooks have, and from several threads at a time.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

import anyio

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

T = TypeVar("T")


class Portal:
    """An event loop in a thread; it begins with the first call.

    Args:
        closing: Runs at the loop's end, if it began.
    """

    def __init__(self, closing: Callable[[], Awaitable[None]]) -> None:
        self._closing = closing
        self._lock = threading.Lock()
        self._running: BlockingPortal | None = None
        self._stop: Callable[[], object] = int

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine and return what it returns.

        Where the caller is interrupted (Ctrl-C), the coroutine is cancelled and what it does about that is waited for.
        """
        scope: anyio.CancelScope | None = None

        async def cancellable() -> T:
            nonlocal scope
            with anyio.CancelScope() as scope:
                return await work()
            raise RuntimeError("the caller was interrupted")  # which nobody reads

        portal = self._portal()
        future = portal.start_task_soon(cancellable)
        try:
            return future.result()
        except KeyboardInterrupt:
            if not future.done():
                portal.start_task_soon(lambda: scope.cancel() if scope is not None else None)
                # A second Ctrl-C ends this wait.
                future.exception()
            raise

    def close(self) -> None:
        """End the loop and its thread."""
        with self._lock:
            self._running = None
            self._stop()

    def _portal(self) -> BlockingPortal:
        from anyio.from_thread import start_blocking_portal

        with self._lock:
            if self._running is None:
                context = start_blocking_portal(name="kubediffusion-client")
                self._running = context.__enter__()
                # Also at the end of a program that does not close it.
                self._stop = weakref.finalize(self, _stop, context, self._running, self._closing)
            return self._running


def _stop(
    context: AbstractContextManager[BlockingPortal], portal: BlockingPortal, closing: Callable[[], Awaitable[None]]
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended already
        portal.call(closing)
        portal.start_task_soon(portal.stop, True)
    context.__exit__(None, None, None)
