"""Writes which adapters the worker holds, and which it refuses, to a condition of its own Pod, as it tells its start.

Nothing depends on the condition: a worker that may not write it loads adapters all the same.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Mapping

from kubediffusion.resources.adapters import AdapterReport, reports_to_json
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.apiserver.resource import STRATEGIC_MERGE_PATCH
from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.conditions import ConditionStatus, PodConditionType
from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.schema import format_time

logger = logging.getLogger(__name__)

PERIOD = 3.0
"""Seconds between two writes at least; of the changes between, the last is written."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0


class AdaptersReport:
    """Writes the condition whenever what is held changes. Belongs to the event loop.

    Args:
        client: The API server.
        namespace: Namespace of the Pod.
        pod: Name of the Pod.
        redactor: Takes secrets out of messages, which may quote what a library says.
        period: Seconds between two writes at least.
    """

    def __init__(
        self, client: KubernetesClient, namespace: str, pod: str, redactor: Redactor, period: float = PERIOD
    ) -> None:
        self._client = client
        self._path = f"/api/v1/namespaces/{namespace}/pods/{pod}/status"
        self._redactor = redactor
        self._period = period
        self._changed = asyncio.Event()
        self._reports: Mapping[str, AdapterReport] = {}
        self._warned = False

    def set(self, reports: Mapping[str, AdapterReport]) -> None:
        """Tell what is held and what is refused, by name; what matters most first."""
        self._reports = reports
        self._changed.set()

    async def run(self) -> None:
        """Write until cancelled; errors are logged."""
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._write()
            except KubernetesError as error:
                self._warn(error)
                if error.transient:
                    self._changed.set()
                    await asyncio.sleep(error.retry_after or backoff.next_pause())
            except Exception:
                logger.exception("a defect: which adapters are held cannot be shown")
            else:
                backoff.reset()
                await asyncio.sleep(self._period)

    async def _write(self) -> None:
        told = {
            name: report.model_copy(update={"message": self._redactor.redact(report.message)})
            for name, report in self._reports.items()
        }
        condition = {
            "type": PodConditionType.ADAPTERS_KNOWN,
            "status": ConditionStatus.TRUE,
            "reason": "Told",
            "message": reports_to_json(told),
            "lastTransitionTime": format_time(dt.datetime.now(dt.UTC)),
        }
        # Conditions are merged by their type: those of others stay.
        patch = {"status": {"conditions": [condition]}}
        await self._client.request("PATCH", self._path, body=patch, content_type=STRATEGIC_MERGE_PATCH)

    def _warn(self, error: KubernetesError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("the Pod's status does not show which adapters are held: %s", error)
