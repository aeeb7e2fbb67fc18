"""A worker tells how far its start has come in a condition of its own Pod, and writes nothing else of any Pod."""

from __future__ import annotations

from typing import Any

import pytest

from integration.resources.identities import Room, SignIn, refusal
from kubediffusion.local.testing import eventually
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ForbiddenError
from kubediffusion.resources.apiserver.resource import STRATEGIC_MERGE_PATCH
from kubediffusion.resources.conditions import PodConditionType

WORKER, OTHER_WORKER = "worker-a", "worker-b"


def condition(kind: str = PodConditionType.ENGINE_READY, status: str = "False") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": "WarmingUp", "message": "3 of 5 batch sizes are prepared"}


def engine_ready(**more: Any) -> dict[str, Any]:
    return {"status": {"conditions": [condition()], **more}}


class Pods:
    """Writes of Pods' statuses in a room."""

    def __init__(self, room: Room) -> None:
        self._room = room

    async def read(self, name: str) -> Any:
        return await self._room.client.request("GET", self._room.path("pods", name, group="api/v1"))

    async def write(self, who: KubernetesClient, name: str, patch: dict[str, Any], *, dry: bool = False) -> Any:
        return await who.request(
            "PATCH",
            self._room.path("pods", name, "status", group="api/v1"),
            query={"dryRun": "All"} if dry else {},
            body=patch,
            content_type=STRATEGIC_MERGE_PATCH,
        )


@pytest.fixture
async def pods(room: Room, other_worker: KubernetesClient) -> Pods:
    """The Pods of the room, once the policy about them is in force."""
    pods = Pods(room)

    async def in_force() -> bool:
        return isinstance(await refusal(pods.write(other_worker, WORKER, engine_ready(), dry=True)), ForbiddenError)

    await eventually("the admission policy", in_force)
    return pods


async def test_a_worker_tells_in_its_own_pod_how_far_its_start_has_come(pods: Pods, worker: KubernetesClient) -> None:
    before = (await pods.read(WORKER))["status"].get("conditions", [])
    for status in ("False", "True", "True"):
        both = [condition(kind, status) for kind in PodConditionType]
        await pods.write(worker, WORKER, {"status": {"conditions": both}})
    after = {each["type"]: each for each in (await pods.read(WORKER))["status"]["conditions"]}
    assert {after.pop(kind)["status"] for kind in PodConditionType} == {"True"}
    # What others wrote is as it was; the scheduler may have written meanwhile.
    assert {each["type"] for each in before} - set(PodConditionType) <= after.keys()


async def test_a_worker_writes_of_no_other_pod(pods: Pods, worker: KubernetesClient) -> None:
    error = await refusal(pods.write(worker, OTHER_WORKER, engine_ready()))
    assert isinstance(error, ForbiddenError)
    assert "no Pod but its own" in error.message


async def test_a_workers_account_without_its_pod_writes_of_none(pods: Pods, sign_in: SignIn) -> None:
    async with sign_in("kubediffusion-worker") as anybody:
        assert isinstance(await refusal(pods.write(anybody, WORKER, engine_ready())), ForbiddenError)


@pytest.mark.parametrize(
    "patch",
    [
        {"status": {"conditions": [condition("Ready", "True")]}},
        {"status": {"conditions": [condition(), condition("example.com/gate", "True")]}},
        {"status": {"conditions": [{"type": "example.com/kept", "$patch": "delete"}]}},
        {"status": {"conditions": [{"type": "example.com/kept", "status": "False"}]}},
        {"metadata": {"labels": {"app": "somebody-elses"}}, **engine_ready()},
        {"metadata": {"annotations": {"example.com/note": "x"}}, **engine_ready()},
        {"metadata": {"finalizers": ["example.com/stays"]}, **engine_ready()},
        engine_ready(phase="Running"),
        engine_ready(podIP="10.0.0.1", podIPs=[{"ip": "10.0.0.1"}]),
        engine_ready(message="x"),
        engine_ready(containerStatuses=[{"name": "worker", "image": "x", "imageID": "", "restartCount": 9}]),
    ],
    ids=str,
)
async def test_a_worker_writes_nothing_but_that_condition(
    pods: Pods, room: Room, worker: KubernetesClient, patch: dict[str, Any]
) -> None:
    await pods.write(room.client, WORKER, {"status": {"conditions": [condition("example.com/kept", "True")]}})
    error = await refusal(pods.write(worker, WORKER, patch, dry=True))
    assert isinstance(error, ForbiddenError)
    assert "no more of its Pod than the conditions kubediffusion.io/EngineReady and " in error.message


async def test_a_worker_may_not_replace_a_status_or_touch_its_pod(
    room: Room, pods: Pods, worker: KubernetesClient
) -> None:
    pod = await pods.read(WORKER)
    path = room.path("pods", WORKER, group="api/v1")
    for method, where, body in (
        ("PUT", f"{path}/status", pod),
        ("PATCH", path, {"metadata": {"labels": {"a": "b"}}}),
        ("DELETE", path, {}),
        ("GET", path, None),
    ):
        kind = STRATEGIC_MERGE_PATCH if method == "PATCH" else "application/json"
        assert isinstance(await refusal(worker.request(method, where, body=body, content_type=kind)), ForbiddenError)


async def test_others_write_pods_statuses_as_ever(pods: Pods, room: Room, sign_in: SignIn) -> None:
    """A controller that serves readiness gates, with a Pod-bound token of another Pod."""
    rule = {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]}
    watching = {"apiGroups": ["kubediffusion.io"], "resources": ["generationjobs"], "verbs": ["list"]}
    rbac = "apis/rbac.authorization.k8s.io/v1"
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": room.namespace}
    role = {"metadata": {"name": "gates"}, "rules": [rule, watching]}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "gates"}
    binding = {"metadata": {"name": "gates"}, "roleRef": reference, "subjects": [subject]}
    await room.client.request("POST", room.path("roles", group=rbac), body=role)
    await room.client.request("POST", room.path("rolebindings", group=rbac), body=binding)
    async with sign_in("default") as controller:
        gate = {"status": {"conditions": [condition("example.com/gate", "True")]}}
        await pods.write(controller, WORKER, gate)
