"""Events on a pod: what a person who asks ``kubectl describe pod`` would want to know beyond its status."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging

from kubediffusion.local.node.access import Access
from kubediffusion.local.node.objects import Pod
from kubediffusion.local.node.status import timestamp
from kubediffusion.resources.apiserver.errors import KubernetesError

logger = logging.getLogger(__name__)

COMPONENT = "process-node"
MESSAGE_CHARACTERS = 1024  # more is refused

BACK_OFF = "BackOff"
FAILED = "Failed"
UNHEALTHY = "Unhealthy"


class Events:
    """The warnings on one pod. They are best effort: nothing waits for them, and none is tried twice."""

    def __init__(self, access: Access, pod: Pod, node: str) -> None:
        self._access = access
        self._pod = pod
        self._node = node
        self._last = ("", "")
        self._tasks: set[asyncio.Task[None]] = set()

    def warn(self, reason: str, message: str) -> None:
        """Create a warning Event, unless the last one said the same."""
        if (reason, message) == self._last:
            return
        self._last = (reason, message)
        task = asyncio.create_task(self._create(reason, message))
        self._tasks.add(task)  # a task that nobody holds may vanish before it has run
        task.add_done_callback(self._tasks.discard)

    async def _create(self, reason: str, message: str) -> None:
        metadata = self._pod.metadata
        now = timestamp(dt.datetime.now(dt.UTC))
        event = {
            "metadata": {"generateName": f"{metadata.name}."},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": metadata.namespace,
                "name": metadata.name,
                "uid": metadata.uid,
            },
            "type": "Warning",
            "reason": reason,
            "message": message[:MESSAGE_CHARACTERS],
            "source": {"component": COMPONENT, "host": self._node},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._access.create_event(event, metadata.namespace)
        except KubernetesError as error:
            logger.info("pod %s: the event %s was not taken: %s", self._pod, reason, error)
