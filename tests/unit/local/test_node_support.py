"""A pod that a process node cannot run is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from kubediffusion.local.node.objects import Pod
from kubediffusion.local.node.support import unsupported

PLAIN = {"name": "main", "command": ["true"]}


def a_pod(container: dict[str, Any] | None = None, **spec: Any) -> Pod:
    return Pod.from_wire({"metadata": {}, "spec": {"containers": [{**PLAIN, **(container or {})}], **spec}})


def test_an_ordinary_pod_is_taken() -> None:
    pod = a_pod(
        {"readinessProbe": {"httpGet": {"port": 80}}, "env": [{"name": "A", "value": "1"}]},
        volumes=[{"name": "a", "emptyDir": {}}, {"name": "b", "hostPath": {"path": "/tmp"}}],  # noqa: S108 # a path
    )
    assert unsupported(pod) is None


@pytest.mark.parametrize(
    ("container", "spec", "reason"),
    [
        ({}, {"initContainers": [PLAIN]}, "init containers"),
        ({"command": []}, {}, "container main: it has no command"),
        ({}, {"volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]}, "volume v is of a kind"),
        ({"lifecycle": {"preStop": {}}, "command": ["a"]}, {}, "lifecycle hooks"),
        ({"livenessProbe": {"grpc": {"port": 1}}}, {}, "its liveness probe is of a kind"),
        (
            {"env": [{"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]},
            {},
            "environment variable CPU",
        ),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": "$(A)"}]}, {}, "subPathExpr"),
    ],
)
def test_what_is_missing_is_named(container: dict[str, Any], spec: dict[str, Any], reason: str) -> None:
    assert reason in (unsupported(a_pod(container, **spec)) or "")
