"""KubeDiffusion in a local cluster, as manifests: what the chart installs elsewhere, for a node without images.

CRDs, RBAC rules and admission policies are the chart's own files. Each part has its own service account here too, so
that a right that is missing is missing here first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kubediffusion.local.layout import CHART
from kubediffusion.local.node.objects import GPU
from kubediffusion.local.reservations import LOOPBACK
from kubediffusion.resources import meta

Manifest = dict[str, Any]

OPERATOR = "kubediffusion-operator"
API = "kubediffusion-api"
WORKER = "kubediffusion-worker"
WEBHOOKS = "kubediffusion-webhooks"
"""The deliverer of webhooks; also the Secret that it signs with."""
WEBHOOKS_LEASE = f"{WEBHOOKS}-lease"
"""What lets its replicas agree on which of them delivers."""
WEBHOOK_AUTHORS = "kubediffusion-webhook-authors"
"""What lets the API create jobs with a webhook."""
ROLES = {OPERATOR: "operator.yaml", API: "api.yaml", WORKER: "worker.yaml", WEBHOOKS: "webhooks.yaml"}
RELEASE = f"{OPERATOR}-release"
"""What the operator may do in every namespace."""
MORE_ROLES = {
    RELEASE: "release.yaml",
    WEBHOOKS_LEASE: "webhooks-lease.yaml",
    WEBHOOK_AUTHORS: "webhook-authors.yaml",
}

S3_SECRET = "kubediffusion-s3"  # noqa: S105 # its name
BUCKET = "kubediffusion"
PREFIX = "images"

DEFAULT_MODEL = "kubediffusion-emoji"
API_PORT = 8000
OPERATOR_PORT = 8081


def cluster_scoped() -> list[Manifest]:
    """Return what a cluster has once: the CRDs, the admission policies and the roles."""
    roles = [
        _object("rbac.authorization.k8s.io/v1", "ClusterRole", name, rules=_load(CHART / "files" / "rbac" / file))
        for name, file in {**ROLES, **MORE_ROLES}.items()
    ]
    return [*crds(), *_documents(CHART / "files" / "policies"), *roles]


def crds() -> list[Manifest]:
    """Return the custom resource definitions."""
    return list(_documents(CHART / "crds"))


def namespaced(namespace: str, settings: Mapping[str, str]) -> list[Manifest]:
    """Return what each namespace has whose jobs are served: who may do what, and where images go.

    Args:
        namespace: The namespace.
        settings: The ordinary AWS settings of an S3 client.
    """
    manifests = [
        _object(
            "v1",
            "Secret",
            S3_SECRET,
            namespace,
            stringData={**settings, "KUBEDIFFUSION_S3_BUCKET": BUCKET, "KUBEDIFFUSION_S3_PREFIX": PREFIX},
        )
    ]
    for name in ROLES:
        manifests += [_object("v1", "ServiceAccount", name, namespace), _role_binding(name, name, namespace)]
    more = [_role_binding(WEBHOOK_AUTHORS, API, namespace), _role_binding(WEBHOOKS_LEASE, WEBHOOKS, namespace)]
    return [*manifests, *more]


def release_binding(namespace: str) -> Manifest:
    """Return what lets the operator of a namespace release deleted jobs in every other, as the chart does.

    Args:
        namespace: The operator's own namespace.
    """
    return _object(
        "rbac.authorization.k8s.io/v1",
        "ClusterRoleBinding",
        f"{RELEASE}-{namespace}",
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": RELEASE},
        subjects=[{"kind": "ServiceAccount", "name": OPERATOR, "namespace": namespace}],
    )


@dataclass(frozen=True)
class Part:
    """A part that serves for as long as the cluster runs.

    Attributes:
        name: Its name, command and service account.
        port: Where it serves, its probes included.
        address: Where it listens; its pod's own address where that is None.
        environment: Further settings.
    """

    name: str
    port: int
    address: str | None = None
    environment: Mapping[str, str] | None = None


def operator(namespace: str, environment: Mapping[str, str] | None = None) -> Manifest:
    """Return the operator's Deployment, for the jobs of one namespace."""
    settings = {"KUBEDIFFUSION_NAMESPACES": namespace, **(environment or {})}
    return deployment(namespace, Part(OPERATOR, OPERATOR_PORT, environment=settings))


def api(namespace: str, *, port: int | None = None, environment: Mapping[str, str] | None = None) -> Manifest:
    """Return the API's Deployment; with a port, it is served on this machine's 127.0.0.1 rather than in its pod."""
    # This machine's own, as kind's and minikube's clusters are: nobody is asked for a key unless the settings say so.
    settings = {
        "KUBEDIFFUSION_NAMESPACE": namespace,
        "KUBEDIFFUSION_ALLOW_UNAUTHENTICATED": "true",
        **(environment or {}),
    }
    return deployment(namespace, Part(API, port or API_PORT, LOOPBACK if port else None, settings))


def deployment(namespace: str, part: Part) -> Manifest:
    """Return the Deployment of a part: one replica, replaced as a whole."""
    labels = {"app.kubernetes.io/name": part.name}
    host = part.address or "$(POD_IP)"
    environment = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "KUBEDIFFUSION_BIND_ADDRESS", "value": host},
        {"name": "KUBEDIFFUSION_PORT", "value": str(part.port)},
        *({"name": name, "value": value} for name, value in (part.environment or {}).items()),
    ]
    container = {
        "name": part.name.removeprefix("kubediffusion-"),
        "image": part.name,
        "command": [part.name],
        "env": environment,
        "envFrom": [{"secretRef": {"name": S3_SECRET}}],
        "ports": [{"name": "http", "containerPort": part.port}],
        "readinessProbe": _probe("/readyz", part.port, period=1),
        "livenessProbe": _probe("/livez", part.port, period=10),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return _object(
        "apps/v1",
        "Deployment",
        part.name,
        namespace,
        spec={
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": part.name,
                    "hostNetwork": part.address is not None,
                    "terminationGracePeriodSeconds": 10,
                    "containers": [container],
                },
            },
        },
    )


def default_model(namespace: str, folder: Path, gpus: int = 0) -> Manifest:
    """Return the model for jobs that name none.

    Args:
        namespace: The namespace.
        folder: A diffusers pipeline on this machine.
        gpus: How many GPUs the node has; a worker takes one if there is one.
    """
    manifest = _object(meta.API_VERSION, "DiffusionModel", DEFAULT_MODEL, namespace)
    manifest["metadata"]["annotations"] = {meta.DEFAULT_MODEL_ANNOTATION: "true"}
    # Kept warm, so that the first request need not wait for libraries and weights to load.
    workers: Manifest = {"minReplicas": 1, "maxReplicas": max(1, gpus)}
    if gpus:
        workers["resources"] = {"limits": {GPU: 1}}
    manifest["spec"] = {"source": {"path": str(folder)}, "workers": workers}
    return manifest


def _role_binding(role: str, account: str, namespace: str) -> Manifest:
    return _object(
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        role,
        namespace,
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        subjects=[{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    )


def _probe(path: str, port: int, period: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": 6,
    }


def _object(api_version: str, kind: str, name: str, namespace: str | None = None, **content: Any) -> Manifest:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


def _documents(folder: Path) -> Iterator[Manifest]:
    for file in sorted(folder.glob("*.yaml")):
        yield from (document for document in yaml.safe_load_all(file.read_text()) if document)


def _load(file: Path) -> Any:
    return yaml.safe_load(file.read_text())
