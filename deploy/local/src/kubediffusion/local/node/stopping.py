"""The one-way signal that a pod is to end."""

from __future__ import annotations

import asyncio


class Stop:
    """Asked for once or more often; each time with a time of grace, which only ever becomes shorter."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._kill = asyncio.Event()
        self.grace_seconds = 0.0

    @property
    def asked(self) -> bool:
        """Whether the pod is to end."""
        return self._asked.is_set()

    def ask(self, grace_seconds: float) -> None:
        """Ask the pod to end."""
        if self.asked:
            self.grace_seconds = min(self.grace_seconds, grace_seconds)
            if self.grace_seconds == 0:
                self._kill.set()
        else:
            self.grace_seconds = grace_seconds
            self._asked.set()

    async def wait(self) -> None:
        """Wait until the pod is to end."""
        await self._asked.wait()

    async def wait_kill(self) -> None:
        """Wait until the pod, which is ending, is to end without any more grace."""
        await self._kill.wait()

    async def asked_within(self, seconds: float) -> bool:
        """Wait for some seconds, or less if the pod is to end; return whether the pod is to end."""
        try:
            await asyncio.wait_for(self._asked.wait(), seconds)
        except TimeoutError:
            return False
        return True
