"""Why workers do not start, where only an Event says it: a Pod that is not created, a volume that is not mounted.

The Job of a worker may be accepted and its Pod refused (its service account does not exist, a quota, a policy): the
Job's status says nothing of that. Events are asked for only while a worker does not start.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging

from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.store import Store
from kubediffusion.resources.apiserver.errors import KubernetesError

logger = logging.getLogger(__name__)

PERIOD = 3.0
"""Seconds between two looks, while workers do not start."""


class StartWarnings:
    """Reports what Warning Events say of workers that do not start.

    Args:
        cluster: Where Events are read.
        store: Knows such workers, and takes the warnings.
    """

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self._cluster = cluster
        self._store = store
        self._warned: set[str] = set()
        """Namespaces of which the store has warnings."""

    async def run(self) -> None:
        """Read Events until cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            unstarted = self._store.unstarted_workers(dt.datetime.now(dt.UTC))
            for namespace in self._warned - unstarted.keys():
                self._store.observe_warnings(namespace, {})
            self._warned &= unstarted.keys()
            for namespace, uids in unstarted.items():
                try:
                    warnings = await self._cluster.warnings(namespace, uids)
                except KubernetesError as error:
                    logger.warning("cannot read why workers do not start: %s", error, extra={"namespace": namespace})
                except Exception:
                    logger.exception("a defect: cannot read why workers do not start", extra={"namespace": namespace})
                else:
                    self._warned.add(namespace)
                    self._store.observe_warnings(namespace, warnings)
