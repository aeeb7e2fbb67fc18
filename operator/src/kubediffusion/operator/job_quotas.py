"""How many GenerationJobs the ResourceQuotas of each namespace admit. A finished job counts like any other."""

from __future__ import annotations

from collections.abc import Iterable

from kubernetes.utils.quantity import parse_quantity

from kubediffusion.resources import meta
from kubediffusion.resources.objects import KubernetesObject
from kubediffusion.resources.schema import Schema

COUNTED = f"count/{meta.GENERATION_JOBS}.{meta.GROUP}"
"""The name of GenerationJobs in a ResourceQuota."""


class ResourceQuotaStatus(Schema):
    """The part of a ResourceQuota's status that is read: what is enforced, as quantities."""

    hard: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it


class ResourceQuota(KubernetesObject):
    """A ResourceQuota, of which only what is enforced is read."""

    status: ResourceQuotaStatus = ResourceQuotaStatus()


def jobs_admitted(quotas: Iterable[ResourceQuota]) -> dict[str, int]:
    """Return how many GenerationJobs each namespace may have, where a quota says so."""
    admitted: dict[str, int] = {}
    for quota in quotas:
        if COUNTED in quota.status.hard:
            count, namespace = int(parse_quantity(quota.status.hard[COUNTED])), quota.metadata.namespace
            admitted[namespace] = min(count, admitted.get(namespace, count))
    return admitted
