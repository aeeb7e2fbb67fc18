"""Runs the pods that are bound to this node: one runner for each, by uid."""

from __future__ import annotations

import asyncio
import logging

from kubediffusion.local.node.objects import Pod
from kubediffusion.local.node.runner import Node, PodRunner
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.apiserver.resource import Resource

logger = logging.getLogger(__name__)


class Agent:
    """Watches the pods of a node and keeps a runner for each."""

    def __init__(self, client: KubernetesClient, node: Node) -> None:
        self._node = node
        self._runners: dict[str, PodRunner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        pods = Resource(client, Pod, "/api/v1", "pods")
        self._reflector = Reflector(pods, None, self._on_change, field_selector=f"spec.nodeName={node.name}")

    async def run(self) -> None:
        """Run pods until cancelled; then end them all."""
        try:
            await self._reflector.run()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def find(self, namespace: str, name: str) -> PodRunner | None:
        """Return the runner of a pod that is here."""
        for runner in self._runners.values():
            metadata = runner.pod.metadata
            if (metadata.namespace, metadata.name) == (namespace, name):
                return runner
        return None

    def _on_change(self, pod: Pod, gone: bool) -> None:
        uid = pod.metadata.uid
        runner = self._runners.get(uid)
        if runner is None:
            if not gone:
                self._start(pod)
        elif gone:
            runner.gone()
        else:
            runner.update(pod)

    def _start(self, pod: Pod) -> None:
        uid = pod.metadata.uid
        runner = PodRunner(self._node, pod)
        self._runners[uid] = runner
        task = asyncio.create_task(runner.run(), name=str(pod))
        self._tasks[uid] = task
        task.add_done_callback(lambda done: self._on_done(uid, done))

    def _on_done(self, uid: str, task: asyncio.Task[None]) -> None:
        del self._runners[uid]
        del self._tasks[uid]
        if not task.cancelled() and (error := task.exception()):
            # A defect of this node; the other pods are not to suffer from it.
            logger.error("pod %s was lost", task.get_name(), exc_info=error)
