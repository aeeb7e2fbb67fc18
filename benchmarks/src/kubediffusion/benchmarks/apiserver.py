"""What the Kubernetes API server was asked, by its own counters."""

from __future__ import annotations

import re
from collections import Counter

from kubediffusion.local.cluster import LocalCluster

LINE = re.compile(r"^apiserver_request_total\{(?P<labels>.*)\} (?P<value>\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')

Requests = Counter[str]
"""Number of requests by verb, resource and status code, as in ``PATCH generationjobs/status 200``."""


def requests(cluster: LocalCluster) -> Requests:
    """Read how many requests the API server has answered since it was started."""
    counted: Requests = Counter()
    for line in LINE.finditer(cluster.kubectl("get", "--raw", "/metrics")):
        labels = dict(LABEL.findall(line["labels"]))
        if labels["resource"]:
            resource = "/".join(filter(None, (labels["resource"], labels["subresource"])))
            counted[f"{labels['verb']} {resource} {labels['code']}"] += int(float(line["value"]))
    return counted


def of(counted: Requests, resource: str) -> int:
    """Count the requests for a resource, its subresources included; watches are not requests that end."""
    return sum(
        count
        for key, count in counted.items()
        if not key.startswith("WATCH ") and key.split()[1].split("/")[0] == resource
    )
