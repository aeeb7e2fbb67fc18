"""The metrics for Prometheus: requests, jobs, cache and watch.

``prometheus-fastapi-instrumentator`` matches all routes a second time, at 69 µs a request, and would count polls, which
are answered before the routes, under no route (docs/adr/0017).
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, PlatformCollector
from prometheus_client import ProcessCollector as ProcessMetrics

from kubediffusion.api.job_cache.cache import JobCache

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessMetrics(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        prefix = "kubediffusion_api"
        self._requests = Counter(
            f"{prefix}_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            f"{prefix}_request_seconds", "Time to answer.", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.jobs_created = Counter(f"{prefix}_jobs_created", "Jobs accepted.", registry=self.registry)
        self.lookups = Counter(
            f"{prefix}_lookups", "Reads of jobs that the watch had not shown.", ["found"], registry=self.registry
        )
        self.image_reads = Counter(
            f"{prefix}_image_reads", "Images wanted, by where they were found.", ["source"], registry=self.registry
        )
        self.watch_lag = Histogram(
            f"{prefix}_watch_lag_seconds",
            "Time from this process's own write to the watch showing it.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.waiting_requests = Gauge(
            f"{prefix}_waiting_requests", "Requests that wait for a job's end.", registry=self.registry
        )
        self.open_streams = Gauge(f"{prefix}_open_streams", "Streams of events that are open.", registry=self.registry)
        self._cached_jobs = Gauge(f"{prefix}_cached_jobs", "Jobs in the watch cache.", registry=self.registry)
        self._unfinished_jobs = Gauge(f"{prefix}_unfinished_jobs", "Jobs without an outcome.", registry=self.registry)

    def follow(self, jobs: JobCache) -> None:
        """Report the size of the cache."""
        self._cached_jobs.set_function(lambda: len(jobs))
        self._unfinished_jobs.set_function(lambda: jobs.unfinished)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request by its route's template, and observe its duration in seconds."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)
