"""``spec.workers`` of a DiffusionModel: how many workers there are, and the Pod that each runs in."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from kubediffusion.resources.schema import Schema

AnyObject = Annotated[
    dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, "properties": None})
]
"""A part of the Pod API that is passed through as it is; the API server checks it when the worker Job is created."""


MAX_ENTRIES = 500
"""Entries of a list or map of the Pod API in a model: checking thousands costs the API server seconds. A bound of the
schema alone, as a model that was stored with more must stay readable."""

_BOUNDED_LIST = Field(json_schema_extra={"maxItems": MAX_ENTRIES})
_BOUNDED_MAP = Field(json_schema_extra={"maxProperties": MAX_ENTRIES})


class ResourceRequirements(Schema):
    """Resources of the worker's container, as in the Pod API; ``nvidia.com/gpu`` asks for a GPU."""

    requests: Annotated[dict[str, str | int], _BOUNDED_MAP] = {}
    """What a node must have free."""
    limits: Annotated[dict[str, str | int], _BOUNDED_MAP] = {}
    """What the container may use at most."""


class WorkerTemplateMetadata(Schema):
    """Metadata of worker Pods."""

    labels: Annotated[dict[str, str], _BOUNDED_MAP] = {}
    """More labels."""
    annotations: Annotated[dict[str, str], _BOUNDED_MAP] = {}
    """More annotations."""


class WorkerTemplate(Schema):
    """A part of a PodTemplateSpec."""

    metadata: WorkerTemplateMetadata | None = None
    spec: AnyObject | None = None
    """A part of the Pod's spec, as in the Pod API; the API server checks it when a worker Job is tried or created. The
    template has at most 64 KiB, as JSON."""

    @property
    def partial(self) -> dict[str, Any]:
        """The part of a PodTemplateSpec that it is; empty where it says nothing."""
        found = self.metadata.to_wire() if self.metadata is not None else {}
        metadata = {name: value for name, value in found.items() if value}
        return ({"metadata": metadata} if metadata else {}) | ({"spec": self.spec} if self.spec else {})


class ParallelMode(StrEnum):
    """How the GPUs of a worker share an image."""

    CFG = "cfg"
    """Each of two computes one of the two rows of classifier-free guidance."""
    CONTEXT = "context"
    """Each computes some of the image's tokens, by the Ulysses attention of diffusers."""


class Parallelism(Schema):
    """How several GPUs of one worker share the denoiser's work for an image."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.mode != 'cfg' || self.size <= 2",
                    "message": "mode cfg shares two rows among two GPUs: set size to 2, or mode to context",
                }
            ]
        }
    )

    mode: ParallelMode
    """What is shared: cfg, the rows of guidance; context, the image's tokens."""
    size: Annotated[Literal[1, 2, 4, 8], Field(json_schema_extra={"type": "integer"})]
    """GPUs that a worker's Pod has, all of one node; 1 for no sharing. Resources that ask for GPUs ask for as many."""


class WorkerSettings(Schema):
    """How many workers hold the model, and the Pod that each runs in."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.?minReplicas.orValue(0) <= self.?maxReplicas.orValue(1)",
                    "message": "minReplicas must not exceed maxReplicas, which is 1 when absent",
                },
            ]
        }
    )

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 0
    """Workers kept warm even when nothing waits."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """The most workers at a time; 1 when absent."""
    idle_seconds: Annotated[int, Field(ge=0, le=31_536_000)] = 300
    """A worker above minReplicas goes after this long without work."""
    max_batch_size: Annotated[int, Field(ge=1, le=64)] = 4
    """Images that run together through the pipeline."""
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Container image; by default the one that the operator is configured with."""
    resources: ResourceRequirements = ResourceRequirements()
    """Resources of the worker's container."""
    parallelism: Parallelism | None = None
    """How several GPUs of one worker share the denoiser's work for an image; each image has one GPU when absent."""
    node_selector: Annotated[dict[str, str], _BOUNDED_MAP] = {}
    """Labels that a node must have, as in the Pod API."""
    tolerations: Annotated[tuple[AnyObject, ...], _BOUNDED_LIST] = ()
    """Taints of nodes that are no hindrance, as in the Pod API."""
    affinity: AnyObject | None = None
    """Which nodes are wanted, as in the Pod API."""
    runtime_class_name: str | None = None
    """RuntimeClass of the Pod."""
    priority_class_name: str | None = None
    """PriorityClass of the Pod."""
    service_account_name: str | None = None
    """By default the one that the operator is configured with."""
    image_pull_secrets: Annotated[tuple[AnyObject, ...], _BOUNDED_LIST] = ()
    """Secrets to pull the image with, as in the Pod API."""
    env: Annotated[tuple[AnyObject, ...], _BOUNDED_LIST] = ()
    """More environment variables of the container, as in the Pod API."""
    termination_grace_period_seconds: Annotated[int, Field(ge=0, le=86_400)] = 120
    """How long a worker may take to finish the batch in flight when it is told to go."""
    start_deadline_seconds: Annotated[int, Field(ge=10, le=86_400)] = 3600
    """Seconds without progress after which a worker that starts is replaced, as one that has crashed.

    They do not run while it waits for a node."""
    queue_name: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """LocalQueue of Kueue: the worker Job is labelled for it and starts suspended."""
    template: WorkerTemplate | None = None
    """A partial Pod template, merged over the worker's own, whose container is named worker, as a strategic merge
    patch of Kubernetes is. What would break a worker is refused, in the condition Available and an Event."""

    @property
    def shared(self) -> Parallelism | None:
        """How several GPUs share an image; None where each image has one GPU."""
        return self.parallelism if self.parallelism is not None and self.parallelism.size > 1 else None
