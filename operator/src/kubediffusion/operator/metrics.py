"""Prometheus metrics of the operator."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from kubediffusion.operator.actions import Action
from kubediffusion.operator.finished_jobs import FinishedCount
from kubediffusion.operator.snapshots import ModelSnapshot
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.diffusion_model import DiffusionModel

ACTIONS = Counter(
    "kubediffusion_operator_actions_total", "Actions carried out, by kind and outcome.", ["action", "outcome"]
)
ERRORS = Counter(
    "kubediffusion_operator_errors_total",
    "Errors that concerned one object and were put on it, by its kind: defects, and writes that were refused.",
    ["kind"],
)
REFUSED_NAMESPACES = Gauge(
    "kubediffusion_operator_namespace_refused", "1 where a namespace to manage cannot be listed.", ["namespace"]
)
QUEUED = Gauge("kubediffusion_jobs_queued", "Jobs that wait for a worker.", ["namespace", "model"])
WORKERS = Gauge("kubediffusion_workers", "Workers by state.", ["namespace", "model", "state"])
FINISHED = Gauge("kubediffusion_jobs_finished", "Finished jobs that have not been deleted.", ["namespace"])
FINISHED_LIMIT = Gauge(
    "kubediffusion_jobs_finished_limit",
    "Finished jobs of a namespace that are kept, by the operator's setting or a ResourceQuota; none where neither is.",
    ["namespace"],
)
BINDING_SECONDS = Histogram(
    "kubediffusion_job_binding_seconds",
    "From a job's creation, in whole seconds as Kubernetes keeps it, to its first binding.",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600),
)
PASS_SECONDS = Histogram(
    "kubediffusion_operator_pass_seconds",
    "Duration of one scheduling pass over a namespace.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1),
)
LAST_PASS = Gauge("kubediffusion_operator_last_pass_timestamp_seconds", "When the last scheduling pass ended.")


def forget_model(model: DiffusionModel) -> None:
    """Drop the gauges of a model that is gone: they would tell of its last moment for ever."""
    labels = {"namespace": model.metadata.namespace, "model": model.name}
    QUEUED.remove_by_labels(labels)
    WORKERS.remove_by_labels(labels)


def set_finished_jobs(counts: dict[str, FinishedCount]) -> None:
    """Set the gauges of finished jobs, by namespace; those of namespaces that have none go."""
    FINISHED.clear()
    FINISHED_LIMIT.clear()
    for namespace, count in counts.items():
        FINISHED.labels(namespace).set(count.number)
        if count.limit is not None:
            FINISHED_LIMIT.labels(namespace).set(count.limit)


def action_label(action: Action) -> str:
    """Return the value of the label ``action``: the name of the action's class."""
    return type(action).__name__


def set_model_gauges(snapshot: ModelSnapshot) -> None:
    """Set the gauges of a model to what is observed of it."""
    namespace, name = snapshot.model.metadata.namespace, snapshot.model.name
    QUEUED.labels(namespace, name).set(snapshot.waiting_count)
    for state in WorkerState:
        WORKERS.labels(namespace, name, state).set(sum(worker.state is state for worker in snapshot.workers))
