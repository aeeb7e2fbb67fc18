"""Renders the chart and takes the result apart."""

from __future__ import annotations

import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kubediffusion.local.layout import CHART

Object = dict[str, Any]

RELEASE = "kubediffusion"


class HelmError(Exception):
    """Helm refused; its message is what a person would read."""


@dataclass(frozen=True)
class Helm:
    """A Helm program with a home of its own."""

    program: Path
    home: Path

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin"}
        answer = subprocess.run(
            [str(self.program), *arguments], env=environment, input=stdin, capture_output=True, text=True, check=False
        )
        if answer.returncode != 0:
            raise HelmError(answer.stderr + answer.stdout)
        return answer.stdout

    def template(self, values: Object | None = None, *arguments: str, namespace: str = "chart") -> list[Object]:
        rendered = self._rendered(json.dumps(values or {}), namespace, arguments)
        return [document for document in yaml.load_all(rendered, yaml.CSafeLoader) if document]

    @functools.cache  # noqa: B019 - one Helm lives as long as the tests
    def _rendered(self, values: str, namespace: str, arguments: tuple[str, ...]) -> str:
        return self.run(
            "template",
            RELEASE,
            str(CHART),
            f"--namespace={namespace}",
            "--values=-",
            *arguments,
            stdin=values,
        )


def kinds(objects: list[Object]) -> list[str]:
    return sorted(f"{found['kind']}/{found['metadata']['name']}" for found in objects)


def pick(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)
    return found


def pod_specs(objects: list[Object]) -> list[tuple[str, Object]]:
    """The pod of each object that has one; there is one at least."""
    return [(name, pod["spec"]) for name, pod in _pods(objects)]


def pod_labels(objects: list[Object]) -> list[tuple[str, Object]]:
    """The labels of each object's pod."""
    return [(name, pod["metadata"]["labels"]) for name, pod in _pods(objects)]


def _pods(objects: list[Object]) -> list[tuple[str, Object]]:
    pods = [(o["metadata"]["name"], o if o["kind"] == "Pod" else o.get("spec", {}).get("template")) for o in objects]
    found = [(name, pod) for name, pod in pods if pod]
    assert found, "who loops over none proves nothing"
    return found


def rules(objects: list[Object]) -> list[tuple[str, Object]]:
    """Every rule of every role; there is one at least."""
    found = [(f"{o['kind']}/{o['metadata']['name']}", rule) for o in objects for rule in o.get("rules", [])]
    assert found, "who loops over none proves nothing"
    return found


def restricted_namespace(name: str) -> Object:
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def monitoring_crds() -> list[Object]:
    """Kinds of the Prometheus operator, of any shape: only that they are served matters here."""
    return [_crd(kind, "monitoring.coreos.com") for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule")]


def gateway_crds() -> list[Object]:
    """The kind of the Gateway API that the chart has, likewise."""
    found = _crd("HTTPRoute", "gateway.networking.k8s.io")
    # The API server guards the group of a community.
    found["metadata"]["annotations"] = {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api"}
    return [found]


def _crd(kind: str, group: str) -> Object:
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [version],
        },
    }
