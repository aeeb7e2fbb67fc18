"""Names that the parts agree on: group and version, labels, annotations, finalizers, child names."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from typing import Any

GROUP = "kubediffusion.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

GENERATION_JOBS = "generationjobs"
DIFFUSION_MODELS = "diffusionmodels"

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGER = "kubediffusion-operator"
WORKER_COMPONENT = "worker"
WORKER_SELECTOR = f"{MANAGED_BY_LABEL}={MANAGER},{COMPONENT_LABEL}={WORKER_COMPONENT}"
"""Label selector of every worker Job and worker Pod."""

MODEL_LABEL = f"{GROUP}/model"
"""On worker Jobs and Pods: the DiffusionModel that the worker serves."""

TEMPLATE_HASH_LABEL = f"{GROUP}/template-hash"
"""On worker Jobs and Pods: the model spec that the worker was made from; another hash means an outdated worker."""

DEFAULT_MODEL_ANNOTATION = f"{GROUP}/is-default"
"""``"true"`` on the DiffusionModel that jobs without ``spec.model`` use, like a StorageClass's default annotation: of
several the newest is the default."""

RESTARTED_AT_ANNOTATION = f"{GROUP}/restartedAt"
"""On a DiffusionModel: any new value replaces its workers, as ``kubectl rollout restart`` does for a Deployment."""

IMAGES_FINALIZER = f"{GROUP}/images"
"""Held by jobs with ``deletionPolicy: Delete`` until their images are gone from storage."""

KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

BIND_VERB = "bind"
"""The RBAC verb on generationjobs that marks the operator: the admission policy asks for it. Apart from it only
administrators with every verb have it."""

MAX_MODEL_NAME = 40
"""Characters of a DiffusionModel's name: with hash and ordinal a worker Pod's name still fits a label's 63."""


def new_task_id() -> str:
    """Make the name of a new job: a UUID of version 7 (RFC 9562), so that names sort by the time of creation.

    ``creationTimestamp`` has whole seconds only; the name keeps first come, first served within a second.
    """
    milliseconds = time.time_ns() // 1_000_000
    tail = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | tail
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def content_hash(content: Any) -> str:
    """Give 8 hexadecimal digits that name a JSON-like value."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def worker_job_name(model: str, template_hash: str, ordinal: int) -> str:
    """Name the batch/v1 Job of a worker: the same inputs give the same name, so creating one twice is a 409."""
    return f"{model}-{template_hash}-{ordinal}"


def image_key(prefix: str, namespace: str, uid: str, index: int) -> str:
    """Give the S3 key of an image: a function of the job alone, so a retry overwrites its own bytes."""
    return "/".join(part for part in (prefix.strip("/"), namespace, uid, f"{index}.png") if part)
