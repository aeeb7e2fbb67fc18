"""The worker's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)


class Metrics:
    """The worker's metrics.

    Args:
        registry: Registers them; a test has one of its own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        name = "kubediffusion_worker_{}".format
        self.jobs = Counter(name("jobs"), "Jobs that left this worker, by outcome.", ["outcome"], registry=registry)
        self.bound = Gauge(name("bound_jobs"), "Jobs bound to this worker.", registry=registry)
        self.batch = Histogram(
            name("batch_images"),
            "Images in a batch: in one with slots counted at each step, in a static one once.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.inference = Histogram(
            name("inference_seconds"), "Time of an image in the engine.", buckets=SECONDS, registry=registry
        )
        self.upload = Histogram(
            name("upload_seconds"),
            "Time from an image's pixels to storage's confirmation.",
            buckets=SECONDS,
            registry=registry,
        )
        self.steps = Counter(name("steps"), "Denoising steps, counted for each image.", registry=registry)
        self.slot_steps = Counter(
            name("slot_steps"),
            "Slots computed in the steps of running batches, empty ones included.",
            registry=registry,
        )
        self.batch_limit = Gauge(
            name("batch_limit"), "The most images in a batch; falls when memory runs out.", registry=registry
        )
        self.compiled_steps = Counter(
            name("compiled_batch_steps"), "Steps of running batches that ran compiled.", registry=registry
        )
        self.memory = Gauge(
            name("device_memory_bytes"), "Memory of the device that the engine has reserved.", registry=registry
        )
        self.first_step = Histogram(
            name("first_step_seconds"),
            "Time from a job's entry into the queue to the first step of an image.",
            buckets=SECONDS,
            registry=registry,
        )
        self.buffered = Gauge(
            name("buffered_bytes"), "Finished images that wait for storage or the API server.", registry=registry
        )
        self.load = Gauge(name("model_load_seconds"), "Time it took to load the model.", registry=registry)
