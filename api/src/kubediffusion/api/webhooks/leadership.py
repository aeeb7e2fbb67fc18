"""Which replica delivers: the one that holds a Lease, as Kubernetes' own controllers agree on it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from kubernetes.aio.client import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock

from kubediffusion.resources.apiserver.errors import ConflictError, KubernetesError
from kubediffusion.resources.apiserver.resource import MERGE_PATCH
from kubediffusion.resources.apiserver.rest import RestClient
from kubediffusion.resources.schema import format_time

logger = logging.getLogger(__name__)

LEASE_SECONDS = 15
"""How long a replica that is gone still counts as the leader: kube-controller-manager's own values, as the next two."""
RENEW_SECONDS = 10
RETRY_SECONDS = 2

REQUEST_SECONDS = 5.0


class LeaseLock(BaseLock):
    """A lock by a Lease, for the election of :mod:`kubernetes.aio.leaderelection`.

    That of the library cannot create its Lease in version 37 (it asks for ``pretty=True``, which its own client
    refuses), and an API server that does not answer ends its election; here that is one try without success.

    Args:
        client: The connection.
        name: Name of the Lease.
        namespace: Namespace of the Lease.
        identity: Name of this replica.

    Attributes:
        holder: Who held it when it was read last.
    """

    def __init__(self, client: RestClient, name: str, namespace: str, identity: str) -> None:
        super().__init__(name, namespace, identity)
        self._client = client
        self._leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._version = ""
        self.holder: str | None = None

    async def get(
        self,
        name: str,
        namespace: str,  # noqa: ARG002 - the library's
    ) -> tuple[bool, LeaderElectionRecord] | tuple[bool, Exception] | tuple[bool, None]:
        """Read the Lease; the library wants an error returned."""
        try:
            lease = await self._client.request("GET", f"{self._leases}/{name}", timeout=REQUEST_SECONDS)
        except KubernetesError as error:
            return False, _as_the_library_has_it(error)
        spec = lease.get("spec") or {}
        self._version = lease["metadata"]["resourceVersion"]
        self.holder = spec.get("holderIdentity")
        fields = [self.holder, *(spec.get(name) for name in ("leaseDurationSeconds", "acquireTime", "renewTime"))]
        return True, LeaderElectionRecord(*(None if value in {None, ""} else str(value) for value in fields))

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:  # noqa: ARG002
        """Create the Lease, which nobody holds yet; another replica may be quicker."""
        body = {"metadata": {"name": name}, "spec": _spec(election_record)}
        return await self._write("POST", self._leases, body)

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:  # noqa: ARG002
        """Take or renew the Lease, if nobody has changed it since it was read."""
        body = {"metadata": {"name": name, "resourceVersion": self._version}, "spec": _spec(updated_record)}
        return await self._write("PUT", f"{self._leases}/{name}", body)

    async def release(self) -> None:
        """Give the Lease up, so that another replica need not wait until it has run out."""
        if self.holder == self.identity:
            body = {"metadata": {"resourceVersion": self._version}, "spec": {"holderIdentity": None}}
            await self._write("PATCH", f"{self._leases}/{self.name}", body)

    async def _write(self, method: str, path: str, body: dict[str, Any]) -> bool:
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        try:
            lease = await self._client.request(method, path, body=body, content_type=kind, timeout=REQUEST_SECONDS)
        except ConflictError:
            return False
        except KubernetesError as error:
            logger.warning("the Lease cannot be written: %s", error)
            return False
        self._version = lease["metadata"]["resourceVersion"]
        self.holder = lease["spec"].get("holderIdentity")
        return True


def _spec(record: LeaderElectionRecord) -> dict[str, Any]:
    # A time that was read is in the API server's form, one of the library's in Python's, of the local clock.
    return {
        "holderIdentity": record.holder_identity,
        "leaseDurationSeconds": int(str(record.lease_duration)),
        "acquireTime": _time(str(record.acquire_time)),
        "renewTime": _time(str(record.renew_time)),
    }


def _time(text: str) -> str:
    return format_time(dt.datetime.fromisoformat(text))


def _as_the_library_has_it(error: KubernetesError) -> ApiException:
    return ApiException(status=error.status, reason=str(error), body=json.dumps({"code": error.status}))


class Leadership:
    """The part of one replica in the election of the one that delivers.

    Args:
        client: The connection.
        name: Name of the Lease.
        namespace: Namespace of the Lease.
        identity: Name of this replica.

    Attributes:
        leading: Whether this replica delivers.
    """

    def __init__(self, client: RestClient, name: str, namespace: str, identity: str) -> None:
        self._lock = LeaseLock(client, name, namespace, identity)
        self._identity = identity
        self._working: asyncio.Task[None] | None = None
        self.leading = False

    def problem(self) -> str | None:
        """Say what is wrong; None where some replica holds the Lease."""
        return None if self.leading or self._lock.holder else "no replica is known to hold the Lease yet"

    def detail(self) -> str | None:
        """Say which part this replica has."""
        return "this replica delivers" if self.leading else f"{self._lock.holder} delivers"

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run some work while this replica holds the Lease, until cancelled.

        Args:
            work: What the leader does, for ever; cancelled when the Lease is lost.

        Raises:
            Exception: What the work raised.
        """
        try:
            while True:
                await self._compete(work)
        finally:
            await self._lock.release()

    async def _compete(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Win the Lease, work, and lose it."""

        async def begin() -> None:
            self.leading = True
            logger.info("this replica delivers webhooks", extra={"identity": self._identity})
            self._working = asyncio.create_task(work(), name="deliver webhooks")

        async def end() -> None:
            self.leading = False
            logger.warning("the Lease is lost; another replica delivers webhooks", extra={"identity": self._identity})

        config = Config(self._lock, LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, begin, end)
        electing = asyncio.create_task(LeaderElection(config).run(), name="renew the Lease")
        try:
            while not electing.done():
                tasks = {electing} if self._working is None else {electing, self._working}
                await asyncio.wait(tasks, timeout=RETRY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if self._working is not None and self._working.done():
                    self._working.result()
                    raise RuntimeError("the deliveries have ended")
        finally:
            # What is under way comes to its end while the Lease is still renewed, unless it is lost.
            if self._working is not None:
                self._working.cancel()
                await asyncio.gather(self._working, return_exceptions=True)
            electing.cancel()
            await asyncio.gather(electing, return_exceptions=True)
        electing.result()
        self._working = None
