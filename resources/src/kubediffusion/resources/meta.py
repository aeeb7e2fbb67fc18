"""Names that the parts agree on: group and version, labels, annotations, finalizers, and the operator's RBAC verb."""

from __future__ import annotations

GROUP = "kubediffusion.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

GENERATION_JOBS = "generationjobs"
DIFFUSION_MODELS = "diffusionmodels"
LORA_ADAPTERS = "loraadapters"

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

CLIENT_ANNOTATION = f"{GROUP}/client"
"""On a GenerationJob: the name of the API key that it was created with, by which the API counts unfinished jobs."""

OUTPUT_ENCODING_ANNOTATION = f"{GROUP}/output-encoding"
"""On a GenerationJob: how the API hands out its images where the client asked for another encoding than the stored one
and comes back for them, such as ``webp;quality=80``."""

PREDICTIONS_URL_ANNOTATION = f"{GROUP}/predictions-url"
"""On a GenerationJob with a webhook that was asked for as a prediction: the address of predictions as its client has
it. What its receiver gets is a prediction then."""

PREVIEW_REQUESTED_AT_ANNOTATION = f"{GROUP}/preview-requested-at"
"""On a GenerationJob: somebody looks at it. Any new value has its worker store previews for the next
:data:`PREVIEW_SECONDS`."""

PREVIEW_SECONDS = 60
"""For how long a worker stores previews once they have been asked for."""

IMAGES_FINALIZER = f"{GROUP}/images"
"""Held by jobs with ``deletionPolicy: Delete`` until their images are gone from storage."""
IMAGES_HELD_ANNOTATION = f"{GROUP}/images-held"
"""Why a deleted job is still there: what keeps the operator from deleting its images."""

KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

BIND_VERB = "bind"
"""The RBAC verb on generationjobs that marks the operator: the admission policy asks for it. Apart from it only
administrators with every verb have it."""

DELIVER_VERB = "deliver"
"""The RBAC verb on generationjobs that marks the deliverer of webhooks: the admission policy lets its holder write
``status.webhook``, and nobody else."""

WEBHOOK_VERB = "webhook"
"""The RBAC verb on generationjobs of one who may create jobs with a webhook: the admission policy asks for it."""

RELEASE_VERB = "release"
"""The RBAC verb on generationjobs of one who may take the finalizer of images from deleted jobs, and nothing else of
any: the admission policy asks for it. The operator has it in every namespace, as that of a deleted one takes the roles
in it along."""

MAX_MODEL_NAME = 40
"""Characters of a DiffusionModel's name: with hash and ordinal a worker Pod's name still fits a label's 63."""
