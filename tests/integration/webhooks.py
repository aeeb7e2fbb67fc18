"""A webhook that the API server asks about writes in one namespace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kubediffusion.local.testing import Namespace


@contextmanager
def webhook(
    namespace: Namespace, rule: Mapping[str, Any], client: Mapping[str, str], timeout_seconds: int
) -> Iterator[None]:
    """Have a webhook asked of some writes in a namespace for as long as the block runs.

    Args:
        namespace: Where.
        rule: Which writes: one of the ``rules`` of a ValidatingWebhookConfiguration.
        client: Its ``clientConfig``: where the webhook is, and whose certificates are trusted.
        timeout_seconds: How long the API server waits for its answer.
    """
    asked = {
        "name": "webhook.example.com",
        "rules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
        "clientConfig": client,
        "timeoutSeconds": timeout_seconds,
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    registration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": namespace.name},
        "webhooks": [asked],
    }
    namespace.cluster.apply([registration])
    try:
        yield
    finally:
        namespace.cluster.kubectl("delete", "validatingwebhookconfiguration", namespace.name)
