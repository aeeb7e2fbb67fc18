"""The batch/v1 Job of a worker, made from its DiffusionModel. Pure.

Requirements of the ``restricted`` Pod Security Standard are met throughout:
https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubediffusion.operator.containers import CONTAINER
from kubediffusion.operator.worker_template import TemplateError, lay_over
from kubediffusion.resources import meta
from kubediffusion.resources.accelerators import requested_accelerator
from kubediffusion.resources.diffusion_model import CompileCacheVolume, DiffusionModel, MemorySettings
from kubediffusion.resources.failures import BAD_MODEL_EXIT_CODE
from kubediffusion.resources.model_source import SourceLocation
from kubediffusion.resources.worker_names import content_hash, worker_job_name

MODEL_MOUNT = "/models"
CLAIMS_MOUNT = "/claims"
CACHE = "cache"
"""The volume for whatever a worker writes; the one of ours that a template may replace."""
CACHE_MOUNT = "/var/cache/kubediffusion"
CA_MOUNT = "/etc/kubediffusion/s3-ca"
SHARED_MEMORY_MOUNT = "/dev/shm"  # noqa: S108 - where NCCL looks for it
SHARED_MEMORY_LIMIT = "1Gi"
"""Of the memory by which ranks on GPUs without a direct way between them pass tensors; a container has 64 MiB."""
COMPILED_MOUNT = "/var/cache/kubediffusion-compiled"
TERMINATION_LOG = "/dev/termination-log"
ACCELERATOR = "KUBEDIFFUSION_ACCELERATOR"
"""The variable that tells a worker which accelerator its Pod asks for."""
USER = 65532
"""The user of the images: no root, no name."""

DEFAULT_REQUESTS: dict[str, str | int] = {"cpu": "1", "memory": "2Gi"}
"""What a worker requests whose model says nothing: requests are always explicit."""


@dataclass(frozen=True)
class WorkerDefaults:
    """What the operator's settings add to a model's own.

    Attributes:
        image: Container image.
        service_account: Service account.
        port: Port of probes and metrics.
        s3_secret: Secret whose keys become the worker's environment.
        log_level: Least severe level to log.
        run_as_user: User and group; None where the platform chooses them.
        ca_config_map: ConfigMap with the certificates that storage is trusted by; empty for those of the image.
        environment: Further variables, which a model's own come after.
        template: A partial Pod template for all workers, beneath what models say.
    """

    image: str
    service_account: str
    port: int
    s3_secret: str
    log_level: str
    run_as_user: int | None = USER
    ca_config_map: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    template: Mapping[str, Any] = field(default_factory=dict)


def template_hash(model: DiffusionModel, defaults: WorkerDefaults) -> str:
    """Return the hash of the template that a model's workers are made from.

    A change of what jobs only read (defaults, limits) or of how many workers there are does not replace workers. A
    template that is refused has a hash of its own, for which there are no workers.
    """
    restarted = model.metadata.annotations.get(meta.RESTARTED_AT_ANNOTATION)
    try:
        template: Any = _template(model, defaults)
    except TemplateError as refusal:
        workers = model.spec.workers
        template = [_skeleton(model, defaults), defaults.template, workers.to_wire(), str(refusal)]
    return content_hash([template, model.spec.workers.queue_name, restarted])


def worker_job(model: DiffusionModel, name_hash: str, ordinal: int, defaults: WorkerDefaults) -> dict[str, Any]:
    """Return the manifest of a worker's batch/v1 Job.

    Args:
        model: The model to serve; it owns the Job.
        name_hash: Its :func:`template_hash`.
        ordinal: Tells workers of one template apart.
        defaults: From the operator's settings.

    Raises:
        TemplateError: The model's template, or that of the settings, would not make a worker.
    """
    queue_name = model.spec.workers.queue_name
    labels = _labels(model) | {meta.TEMPLATE_HASH_LABEL: name_hash}
    template = _template(model, defaults)
    template["metadata"]["labels"] = {**template["metadata"]["labels"], **labels}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": worker_job_name(model.name, name_hash, ordinal),
            "namespace": model.metadata.namespace,
            "labels": labels | ({meta.KUEUE_QUEUE_LABEL: queue_name} if queue_name else {}),
            "ownerReferences": [
                {
                    "apiVersion": meta.API_VERSION,
                    "kind": model.KIND,
                    "name": model.name,
                    "uid": model.metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "suspend": queue_name is not None,
            "completions": 1,
            "parallelism": 1,
            # A crash ends the Job: when the next worker starts is the operator's decision, for which the failed Job
            # is the record. What the platform does to a Pod (drain, preemption) counts as no crash: it is replaced.
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [BAD_MODEL_EXIT_CODE]},
                    },
                ]
            },
            "template": template,
        },
    }


def _labels(model: DiffusionModel) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "kubediffusion",
        meta.COMPONENT_LABEL: meta.WORKER_COMPONENT,
        meta.MANAGED_BY_LABEL: meta.MANAGER,
        meta.MODEL_LABEL: model.name,
    }


def _template(model: DiffusionModel, defaults: WorkerDefaults) -> dict[str, Any]:
    """Return the Pod template of a model's workers: ours, beneath the settings', the model's fields and its template.

    Raises:
        TemplateError: One of the two templates would not make a worker.
    """
    skeleton = _skeleton(model, defaults)
    template = copy.deepcopy(skeleton)
    if defaults.template:
        source = "the installation's worker.template"
        template = lay_over(template, defaults.template, source, own=skeleton, replaceable=CACHE)
    _set_fields(template, model)
    if (own := model.spec.workers.template) is not None and own.partial:
        template = lay_over(template, own.partial, "spec.workers.template", own=skeleton, replaceable=CACHE)
    container = worker_container(template)
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    # A request left out is its limit, as Kubernetes defaults it; only then the project's own default.
    defaulted = {k: v for k, v in DEFAULT_REQUESTS.items() if k not in limits}
    container["resources"] = {**resources, "requests": defaulted | requests, "limits": dict(limits)}
    _check_gpus(model, container["resources"])
    accelerator = requested_accelerator(container["resources"])
    if accelerator is not None and not any(entry.get("name") == ACCELERATOR for entry in container["env"]):
        # The model's own spec does not tell: a template asks for one too.
        container["env"] = [*container["env"], _value(ACCELERATOR, accelerator)]
    return template


def _check_gpus(model: DiffusionModel, resources: Mapping[str, Any]) -> None:
    """Check that a Pod whose ranks share an image asks for a GPU for each, where it asks for any.

    Raises:
        TemplateError: It asks for another number.
    """
    if (shared := model.spec.workers.shared) is None:
        return
    for name, count in {**resources["requests"], **resources["limits"]}.items():
        if name.endswith("/gpu") and str(count) not in {"0", str(shared.size)}:
            raise TemplateError(
                f"spec.workers.parallelism.size: {shared.size} GPUs are to share an image, and the Pod asks for "
                f"{name}: {count}; make them equal, in the model and in what templates say"
            )


def worker_container(template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the container of a Pod template that is the worker."""
    (found,) = (item for item in template["spec"]["containers"] if item["name"] == CONTAINER)
    container: dict[str, Any] = found
    return container


def _set_fields(template: dict[str, Any], model: DiffusionModel) -> None:
    """Put into a Pod template what the model's own fields of the Pod API say."""
    workers = model.spec.workers
    fields: dict[str, Any] = {
        "nodeSelector": workers.node_selector,
        "tolerations": list(workers.tolerations),
        "affinity": workers.affinity,
        "runtimeClassName": workers.runtime_class_name,
        "priorityClassName": workers.priority_class_name,
        "imagePullSecrets": list(workers.image_pull_secrets),
    }
    template["spec"] |= {name: value for name, value in fields.items() if value}
    container = worker_container(template)
    if workers.image:
        container["image"] = workers.image
    container["env"] = [*container["env"], *workers.env]
    resources = container.get("resources", {})
    container["resources"] = {
        **resources,
        "requests": {**resources.get("requests", {}), **workers.resources.requests},
        "limits": {**resources.get("limits", {}), **workers.resources.limits},
    }


def _skeleton(model: DiffusionModel, defaults: WorkerDefaults) -> dict[str, Any]:
    """Return the Pod template of a worker before anybody's wishes."""
    workers = model.spec.workers
    volumes: list[dict[str, Any]] = [{"name": CACHE, "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [{"name": CACHE, "mountPath": CACHE_MOUNT}]
    if workers.shared is not None:
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY_LIMIT}})
        mounts.append({"name": "shared-memory", "mountPath": SHARED_MEMORY_MOUNT})
    # One volume a claim: kubelet waits for ever for a claim that a Pod names twice.
    claims: dict[str, str] = {}
    if (claim := model.spec.source.persistent_volume_claim) is not None:
        claims[claim.claim_name] = "model"
        mounts.append({"name": "model", "mountPath": MODEL_MOUNT, "readOnly": True})
    for number, (name, path) in enumerate(_claim_paths(model).items(), start=1):
        volume = claims.setdefault(name, f"model-{number}")
        mounts.append({"name": volume, "mountPath": path, "readOnly": True})
    compiled = _compiled_volume(model)
    if compiled is not None:
        volume = claims.setdefault(compiled.claim_name, "compiled")
        mounts.append({"name": volume, "mountPath": COMPILED_MOUNT})
    for name, volume in claims.items():
        written = compiled is not None and compiled.claim_name == name
        volumes.append(
            {
                "name": volume,
                "persistentVolumeClaim": {"claimName": name} if written else {"claimName": name, "readOnly": True},
            }
        )
    if defaults.ca_config_map:
        volumes.append({"name": "s3-ca", "configMap": {"name": defaults.ca_config_map}})
        mounts.append({"name": "s3-ca", "mountPath": CA_MOUNT, "readOnly": True})
    user = defaults.run_as_user
    spec: dict[str, Any] = {
        "serviceAccountName": workers.service_account_name or defaults.service_account,
        "restartPolicy": "Never",
        # Else each Service of the namespace would be variables of the worker, beside those that are meant for it.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": workers.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            **({} if user is None else {"runAsUser": user, "fsGroup": user}),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": volumes,
        "containers": [_container(model, defaults, mounts)],
    }
    return {"metadata": {"labels": _labels(model)}, "spec": spec}


def _container(model: DiffusionModel, defaults: WorkerDefaults, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": defaults.image,
        "command": ["kubediffusion-worker"],
        "env": _environment(model, defaults),
        "envFrom": [{"secretRef": {"name": defaults.s3_secret}}],
        "resources": {"requests": {}, "limits": {}},
        "ports": [{"name": "metrics", "containerPort": defaults.port}],
        # Loading takes as long as the model is large: the process is alive meanwhile, and ready only afterwards.
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": defaults.port}, "periodSeconds": 1},
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": defaults.port},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }


def _environment(model: DiffusionModel, defaults: WorkerDefaults) -> list[dict[str, Any]]:
    source = model.spec.source
    environment = [
        _field("POD_NAME", "metadata.name"),
        _field("POD_NAMESPACE", "metadata.namespace"),
        _field("POD_IP", "status.podIP"),
        _value("KUBEDIFFUSION_MODEL", model.name),
        _value("KUBEDIFFUSION_MODEL_SPEC", json.dumps(_worker_spec(model), sort_keys=True, separators=(",", ":"))),
        {"name": "KUBEDIFFUSION_BIND_ADDRESS", "value": "$(POD_IP)"},
        _value("KUBEDIFFUSION_PORT", str(defaults.port)),
        _value("KUBEDIFFUSION_LOG_LEVEL", defaults.log_level),
        _value("KUBEDIFFUSION_TERMINATION_LOG", TERMINATION_LOG),
        # Threads that spin while they wait burn the CPU quota that the others need: on two busy cores a small UNet ran
        # several times faster with threads that sleep.
        _value("OMP_WAIT_POLICY", "PASSIVE"),
        # The root filesystem is read-only: whatever a library caches goes to the one writable folder.
        _value("HOME", CACHE_MOUNT),
        _value("TMPDIR", CACHE_MOUNT),
        _value("HF_HOME", f"{CACHE_MOUNT}/huggingface"),
    ]
    if (claim := source.persistent_volume_claim) is not None:
        environment.append(_value("KUBEDIFFUSION_MODEL_PATH", _within(MODEL_MOUNT, claim.path)))
    if (compiled := _compiled_volume(model)) is not None:
        environment.append(_value("KUBEDIFFUSION_COMPILE_CACHE_PATH", _within(COMPILED_MOUNT, compiled.path)))
    if paths := _claim_paths(model):
        environment.append(_value("KUBEDIFFUSION_CLAIM_PATHS", json.dumps(paths, separators=(",", ":"))))
    hubs = (location.hugging_face for location in (source, *_further_locations(model)))
    if secret := next((hub.token_secret_ref for hub in hubs if hub is not None and hub.token_secret_ref), None):
        reference = {"secretKeyRef": {"name": secret.name, "key": secret.key}}
        environment.append({"name": "HF_TOKEN", "valueFrom": reference})
    environment += [{"name": name, "value": value} for name, value in defaults.environment.items()]
    return environment


def _further_locations(model: DiffusionModel) -> list[SourceLocation]:
    """Return where files of the model come from beside its source."""
    config = model.spec.source.config_from
    sources = (component.source for component in model.spec.components)
    return [location for location in (config, *sources) if location is not None]


def _claim_paths(model: DiffusionModel) -> dict[str, str]:
    """Return where the claims of these places are mounted, by name."""
    claims = (location.persistent_volume_claim for location in _further_locations(model))
    return {claim.claim_name: f"{CLAIMS_MOUNT}/{claim.claim_name}" for claim in claims if claim is not None}


def _compiled_volume(model: DiffusionModel) -> CompileCacheVolume | None:
    cache = model.spec.compile_cache
    return cache.persistent_volume_claim if cache is not None else None


def _within(mount: str, path: str) -> str:
    return f"{mount}/{path.strip('/')}".rstrip("/")


def _worker_spec(model: DiffusionModel) -> dict[str, Any]:
    """Return the part of the spec that a worker runs by; what jobs only read stays out, so it replaces no worker."""
    spec = model.spec.to_wire()
    kept = ("source", "torchDtype", "safetyChecker", "useSafetensors", "trustRemoteCode", "compile", "compileCache")
    # What came later stays out where nobody asks for it: an update of the operator replaces no worker for it.
    later = {"components": [], "quantization": "none", "memory": MemorySettings().to_wire()}
    asked = [*(name for name in kept if name in spec), *(name for name, usual in later.items() if spec[name] != usual)]
    workers = model.spec.workers
    shared = {} if workers.shared is None else {"parallelism": workers.shared.to_wire()}
    return {name: spec[name] for name in asked} | {"workers": {"maxBatchSize": workers.max_batch_size, **shared}}


def _value(name: str, value: str) -> dict[str, Any]:
    """Return a variable that has this value whatever is in it: Kubernetes puts another's in the place of $(NAME)."""
    return {"name": name, "value": value.replace("$", "$$")}


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
