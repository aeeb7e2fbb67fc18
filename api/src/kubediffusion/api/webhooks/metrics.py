"""The metrics of the deliverer of webhooks, for Prometheus."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)


class Metrics:
    """The metrics of one process.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        prefix = "kubediffusion_webhooks"
        self.attempts = Counter(
            f"{prefix}_attempts",
            "Attempts to deliver, by outcome: delivered, failed or given_up.",
            ["outcome"],
            registry=registry,
        )
        self.attempt_seconds = Histogram(
            f"{prefix}_attempt_seconds", "Time of an attempt.", buckets=SECONDS, registry=registry
        )
        self.delay = Histogram(
            f"{prefix}_delay_seconds",
            "Time from a job's end, or start, to its delivery.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 600.0, 3600.0, 86400.0),
            registry=registry,
        )
        self.owed = Gauge(f"{prefix}_owed", "Events that are owed, or under way.", registry=registry)
        self.leading = Gauge(f"{prefix}_leading", "Whether this replica delivers: 1, or 0.", registry=registry)
