"""In which order Argo CD applies what it renders: by phase, wave, kind and name.

The order of kinds and the treatment of hooks are those of Argo CD's own engine, gitops-engine: pkg/sync/sync_tasks.go,
pkg/sync/hook/hook.go and pkg/sync/hook/helm.
"""

from __future__ import annotations

from integration.chart.helm_kit import Object

HOOK = "argocd.argoproj.io/hook"
WAVE = "argocd.argoproj.io/sync-wave"
HELM_HOOK = "helm.sh/hook"
HELM_WEIGHT = "helm.sh/hook-weight"
PHASES = ("PreSync", "Sync", "PostSync")
OF_HELM = {
    "crd-install": "PreSync",
    "pre-install": "PreSync",
    "pre-upgrade": "PreSync",
    "post-install": "PostSync",
    "post-upgrade": "PostSync",
}
"""Hooks of Helm that Argo CD knows; others, such as test, it leaves out."""

KINDS = (
    *("Namespace", "NetworkPolicy", "ResourceQuota", "LimitRange", "PodSecurityPolicy", "PodDisruptionBudget"),
    *("ServiceAccount", "Secret", "SecretList", "ConfigMap", "StorageClass", "PersistentVolume"),
    *("PersistentVolumeClaim", "CustomResourceDefinition", "ClusterRole", "ClusterRoleList", "ClusterRoleBinding"),
    *("ClusterRoleBindingList", "Role", "RoleList", "RoleBinding", "RoleBindingList", "Service", "DaemonSet", "Pod"),
    *("ReplicationController", "ReplicaSet", "Deployment", "HorizontalPodAutoscaler", "StatefulSet", "Job", "CronJob"),
    *("Ingress", "APIService"),
)
"""Any other kind comes last."""


def sync_order(objects: list[Object]) -> list[Object]:
    """Return what one sync applies, in order.

    Args:
        objects: What ``helm template --include-crds`` renders, which is what Argo CD runs.
    """
    return sorted((found for found in objects if phases(found)), key=_rank)


def phases(found: Object) -> set[str]:
    """Return the phases of a sync in which an object is applied; none where it is skipped."""
    annotations = found["metadata"].get("annotations", {})
    if HOOK in annotations:
        return {name for name in _words(annotations[HOOK]) if name in PHASES}
    if HELM_HOOK in annotations:
        return {OF_HELM[name] for name in _words(annotations[HELM_HOOK]) if name in OF_HELM}
    return {"Sync"}


def _rank(found: Object) -> tuple[int, int, int, str]:
    annotations = found["metadata"].get("annotations", {})
    wave = int(annotations.get(WAVE) or annotations.get(HELM_WEIGHT) or 0)
    kind = KINDS.index(found["kind"]) if found["kind"] in KINDS else len(KINDS)
    return min(map(PHASES.index, phases(found))), wave, kind, found["metadata"]["name"]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]
