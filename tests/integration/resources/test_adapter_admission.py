"""What the API server takes as a LoRAAdapter, and who may write one."""

from __future__ import annotations

from typing import Any

import pytest

from integration.resources.identities import Room, SignIn, refusal
from kubediffusion.local.testing import Namespace
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ForbiddenError, InvalidError
from kubediffusion.resources.lora_adapter import LoRAAdapter

SOURCES: dict[str, Any] = {
    "huggingFace": {"repository": "studio/crayon", "revision": "v2"},
    "persistentVolumeClaim": {"claimName": "weights", "path": "adapters"},
    "s3": {"uri": "s3://models/crayon"},
    "path": "/adapters/crayon",
}
REFUSED: list[tuple[str, Any]] = [
    ("spec.model", {"model": "Emoji"}),
    ("spec.model", {"model": "a.b"}),
    ("spec.source", {"source": {}}),
    ("spec.source", {"source": {"path": "/a", "s3": {"uri": "s3://a/b"}}}),
    ("spec.source.file", {"source": {"path": "/a", "file": "crayon.pt"}}),
    ("spec.source.file", {"source": {"path": "/a", "file": "/etc/x.safetensors"}}),
    ("tokenSecretRef", {"source": {"huggingFace": {"repository": "a/b", "tokenSecretRef": {"name": "t"}}}}),
    ("spec.scale", {"scale": 10.1}),
    ("spec.scale", {"scale": "NaN"}),
    ("spec.triggerWords", {"triggerWords": ["x"] * 17}),
    ("spec.triggerWords", {"triggerWords": [""]}),
    ("spec.triggerWords", {"triggerWords": ["x" * 101]}),
    ("credentials", {"credentials": {}}),
]
READY = {
    "type": "Ready",
    "status": "True",
    "reason": "Loaded",
    "lastTransitionTime": "2030-01-01T00:00:00Z",
}


def an_adapter(name: str = "crayon", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "kubediffusion.io/v1alpha1",
        "kind": "LoRAAdapter",
        "metadata": {"name": name},
        "spec": {"model": "emoji", "source": {"path": "/adapters"}, **spec},
    }


@pytest.mark.parametrize("kind", SOURCES)
async def test_each_source_is_enough(room: Room, kind: str) -> None:
    created = await room.try_create(an_adapter(source={kind: SOURCES[kind]}), "loraadapters")
    adapter = LoRAAdapter.from_wire(created)
    assert set(adapter.spec.source.to_wire()) == {kind}
    assert (adapter.spec.scale, adapter.spec.trigger_words) == (1.0, ())


@pytest.mark.parametrize(("field", "spec"), REFUSED, ids=str)
async def test_what_is_none_is_refused_by_name(room: Room, field: str, spec: dict[str, Any]) -> None:
    error = await refusal(room.try_create(an_adapter(**spec), "loraadapters"))
    assert isinstance(error, InvalidError)
    assert field in error.message


@pytest.mark.parametrize("name", ["x" * 64, "a.b"])
async def test_its_name_is_one_that_a_job_can_have(room: Room, name: str) -> None:
    error = await refusal(room.try_create(an_adapter(name), "loraadapters"))
    assert isinstance(error, InvalidError)
    assert "at most 63 characters and no dot" in error.message


async def test_its_model_stays_and_the_rest_may_change(own_room: Room) -> None:
    path = own_room.path("loraadapters")
    await own_room.client.request("POST", path, body=an_adapter())
    merge = "application/merge-patch+json"
    for spec in ({"scale": 0.5}, {"source": {"file": "b.safetensors"}}, {"triggerWords": ["crayon"]}):
        await own_room.client.request("PATCH", f"{path}/crayon", body={"spec": spec}, content_type=merge)
    error = await refusal(
        own_room.client.request("PATCH", f"{path}/crayon", body={"spec": {"model": "other"}}, content_type=merge)
    )
    assert isinstance(error, InvalidError)
    assert "spec.model cannot be changed" in error.message


async def test_kubectl_shows_what_a_person_asks_first(namespace: Namespace, client: KubernetesClient) -> None:
    namespace.apply(an_adapter())
    status = {"conditions": [READY], "rank": 8, "digest": "ab" * 32, "shortDigest": "ab" * 6}
    await client.request(
        "PATCH",
        f"/apis/kubediffusion.io/v1alpha1/namespaces/{namespace.name}/loraadapters/crayon/status",
        body={"status": status},
        content_type="application/merge-patch+json",
    )
    heading, line = namespace.kubectl("get", "lora").splitlines()
    assert heading.split() == ["NAME", "MODEL", "READY", "REASON", "RANK", "DIGEST", "AGE"]
    assert line.split()[:6] == ["crayon", "emoji", "True", "Loaded", "8", "ab" * 6]


@pytest.mark.parametrize(("who", "pod"), [("kubediffusion-worker", "worker-a"), ("kubediffusion-api", "")])
async def test_workers_and_api_read_adapters_and_write_none(room: Room, sign_in: SignIn, who: str, pod: str) -> None:
    async with sign_in(who, *([pod] if pod else [])) as client:
        path = room.path("loraadapters")
        assert (await client.request("GET", path))["items"] == []
        for method, where in (("POST", path), ("DELETE", f"{path}/crayon"), ("PATCH", f"{path}/crayon/status")):
            body = an_adapter() if method == "POST" else {}
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            error = await refusal(client.request(method, where, body=body, content_type=kind))
            assert isinstance(error, ForbiddenError), (method, error)
