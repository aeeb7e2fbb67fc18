"""A namespace for tests that leave nothing in each other's way, and the parts' identities in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest

from integration.resources.identities import Room, SignIn, refusal, signed_in
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ForbiddenError

WORKER = "worker-a"
OTHER_WORKER = "worker-b"


def pod(name: str) -> dict[str, Any]:
    """Build a Pod that no node takes: only its identity is of interest."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "serviceAccountName": "kubediffusion-worker",
            "nodeSelector": {"nowhere": "true"},
            "containers": [{"name": "worker", "image": "none"}],
        },
    }


@pytest.fixture(scope="session")
def shared_room(cluster: LocalCluster) -> Iterator[Namespace]:
    """A namespace with the parts' rights, and two workers' Pods."""
    namespace = Namespace(cluster, "resources")
    namespace.create()
    namespace.install(pod(WORKER), pod(OTHER_WORKER))
    yield namespace
    namespace.delete()


@pytest.fixture
async def room(shared_room: Namespace, client: KubernetesClient) -> Room:
    """The shared namespace, once the admission policies are in force."""
    room = Room(client, shared_room.name)

    async def in_force() -> bool:
        job = await room.bound(client, WORKER)
        return isinstance(await refusal(room.write(client, job, phase="Running")), ForbiddenError)

    await eventually("the admission policies", in_force)
    return room


@pytest.fixture
async def own_room(namespace: Namespace, client: KubernetesClient) -> Room:
    """A namespace of the test's own, without the parts' rights."""
    return Room(client, namespace.name)


@pytest.fixture
def sign_in(cluster: LocalCluster, room: Room) -> SignIn:
    """Signs in as a service account of the shared namespace."""
    return partial(signed_in, cluster, room)


@pytest.fixture
async def operator(sign_in: SignIn) -> AsyncIterator[KubernetesClient]:
    """The operator."""
    async with sign_in("kubediffusion-operator") as client:
        yield client


@pytest.fixture
async def deliverer(sign_in: SignIn) -> AsyncIterator[KubernetesClient]:
    """The deliverer of webhooks."""
    async with sign_in("kubediffusion-webhooks") as client:
        yield client


@pytest.fixture
async def worker(sign_in: SignIn) -> AsyncIterator[KubernetesClient]:
    """The worker whose Pod is ``worker-a``."""
    async with sign_in("kubediffusion-worker", WORKER) as client:
        yield client


@pytest.fixture
async def other_worker(sign_in: SignIn) -> AsyncIterator[KubernetesClient]:
    """The worker whose Pod is ``worker-b``."""
    async with sign_in("kubediffusion-worker", OTHER_WORKER) as client:
        yield client
