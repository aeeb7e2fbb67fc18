"""The CustomResourceDefinitions, made from the typed models."""

from __future__ import annotations

from typing import Any

from kubediffusion.resources import meta
from kubediffusion.resources.adapters import MAX_ADAPTER_NAME, MAX_ADAPTERS
from kubediffusion.resources.crds.structural_schema import structural_schema
from kubediffusion.resources.diffusion_model import MAX_STARTS, DiffusionModel
from kubediffusion.resources.generation_job import (
    MAX_IMAGES,
    MAX_SEED,
    MAX_WARNINGS,
    GenerationJob,
    GenerationJobSpec,
    InputRole,
)
from kubediffusion.resources.lora_adapter import MAX_HOLDERS, LoRAAdapter
from kubediffusion.resources.transitions import terminal_rule, transition_rule
from kubediffusion.resources.webhook import WebhookEvent

KEPT = {"argocd.argoproj.io/sync-options": "Prune=false,Delete=false"}
"""Argo CD leaves the definitions, and with them every job, when its application is deleted, as Helm does."""

_BY_ROLE = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["role"]}
_BY_NAME = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}

_Kind = type[GenerationJob] | type[DiffusionModel] | type[LoRAAdapter]

_AS_A_SET = {"x-kubernetes-list-type": "set"}

_CONDITIONS = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


def generation_job_crd() -> dict[str, Any]:
    """Generate the CustomResourceDefinition of GenerationJob, immutability and transitions included."""
    schema = _root_schema(GenerationJob)
    spec, status = schema["properties"]["spec"], schema["properties"]["status"]
    inputs = spec["properties"]["inputs"]
    inputs.update(_BY_ROLE)
    # The pattern says it, but not to the API server when it estimates what a comparison costs.
    inputs["items"]["properties"]["id"]["maxLength"] = 64
    spec["properties"]["adapters"].update(_BY_NAME)
    spec["x-kubernetes-validations"] = [
        _immutability(spec["properties"]),
        _cancel_is_final(),
        _seeds_fit(),
        *_inputs_begin_with_an_image(),
    ]
    spec["properties"]["webhook"]["properties"]["events"].update(_AS_A_SET)
    status["properties"]["webhook"]["properties"]["delivered"].update(_AS_A_SET, maxItems=len(WebhookEvent))
    status["x-kubernetes-validations"] = [
        {"rule": terminal_rule(), "message": "the job has finished: a terminal phase is never left"},
    ]
    # On the fields themselves, where a look at a value costs the API server least. Their defaults see to it that a
    # value is there before and after.
    status["properties"]["phase"]["x-kubernetes-validations"] = [
        {
            "rule": transition_rule(),
            "messageExpression": "'phase cannot go from ' + oldSelf + ' to ' + self",
            "message": "phase cannot change this way",
        },
    ]
    status["properties"]["attempt"]["x-kubernetes-validations"] = [
        {"rule": "self >= oldSelf", "message": "attempt never goes back"},
    ]
    # A job is Pending from its first moment, without a write: field selectors and kubectl see it too.
    status["default"] = {"phase": "Pending", "attempt": 0, "retries": 0}
    status["properties"]["phase"]["default"] = "Pending"
    status["properties"]["attempt"]["default"] = 0
    status["properties"]["retries"]["default"] = 0
    status["properties"]["conditions"].update(_CONDITIONS)
    status["properties"]["parameters"]["properties"]["inputs"]["maxItems"] = len(InputRole)
    status["properties"]["parameters"]["properties"]["adapters"]["maxItems"] = MAX_ADAPTERS
    for name, most in {"images": MAX_IMAGES, "warnings": MAX_WARNINGS, "conditions": 16}.items():
        status["properties"][name]["maxItems"] = most
    return _definition(
        GenerationJob,
        short_name="gj",
        schema=schema,
        columns=[
            ("Model", "string", ".status.parameters.model", "The model it runs on.", 0),
            ("Phase", "string", ".status.phase", "Where the job stands.", 0),
            ("Progress", "string", ".status.progress.summary", "Denoising steps done.", 0),
            ("Worker", "string", ".status.worker", "The Pod that the job is bound to.", 0),
            ("Age", "date", ".metadata.creationTimestamp", "", 0),
            ("Prompt", "string", ".spec.prompt", "", 1),
            ("Reason", "string", ".status.error.code", "Why it failed.", 1),
        ],
        # By its address, so that who delivers webhooks is told of no other jobs.
        selectable=[".status.worker", ".status.phase", ".spec.model", ".spec.webhook.url"],
    )


def diffusion_model_crd() -> dict[str, Any]:
    """Generate the CustomResourceDefinition of DiffusionModel."""
    schema = _root_schema(DiffusionModel)
    status = schema["properties"]["status"]
    status["properties"]["conditions"].update(_CONDITIONS)
    # Zeros are written by nobody, as nothing has changed then; kubectl's table shows them all the same.
    counts = dict.fromkeys(("ready", "busy", "starting"), 0)
    status["default"] = {"queued": 0, "workers": dict(counts)}
    status["properties"]["queued"]["default"] = 0
    status["properties"]["workers"]["default"] = counts
    for name in counts:
        status["properties"]["workers"]["properties"][name]["default"] = 0
    status["properties"]["workers"]["properties"]["starts"]["maxItems"] = MAX_STARTS
    # The API server has no scale of an object that lacks the field.
    workers = schema["properties"]["spec"]["properties"]["workers"]
    workers["default"] = {}
    workers["properties"]["minReplicas"]["default"] = 0
    schema["x-kubernetes-validations"] = [
        {
            "rule": f"self.metadata.name.size() <= {meta.MAX_MODEL_NAME} && !self.metadata.name.contains('.')",
            "message": f"a DiffusionModel's name has at most {meta.MAX_MODEL_NAME} characters and no dot: "
            "the names of its workers begin with it",
        }
    ]
    return _definition(
        DiffusionModel,
        short_name="dm",
        schema=schema,
        columns=[
            ("Available", "string", ".status.conditions[?(@.type=='Available')].status", "Whether it can be used.", 0),
            ("Reason", "string", ".status.conditions[?(@.type=='Available')].reason", "Why.", 0),
            ("Ready", "integer", ".status.workers.ready", "Workers that hold the model.", 0),
            ("Busy", "integer", ".status.workers.busy", "Workers that run jobs.", 0),
            ("Queued", "integer", ".status.queued", "Jobs that wait for a worker.", 0),
            ("Start", "string", ".status.workers.starts[0].reason", "How far a worker's start has come.", 0),
            ("Age", "date", ".metadata.creationTimestamp", "", 0),
        ],
        selectable=[],
        # The floor: how many there are above it is the operator's decision (docs/adr/0026).
        scale={
            "specReplicasPath": ".spec.workers.minReplicas",
            "statusReplicasPath": ".status.workers.ready",
            "labelSelectorPath": ".status.selector",
        },
    )


def lora_adapter_crd() -> dict[str, Any]:
    """Generate the CustomResourceDefinition of LoRAAdapter."""
    schema = _root_schema(LoRAAdapter)
    status = schema["properties"]["status"]
    status["properties"]["conditions"].update(_CONDITIONS)
    status["properties"]["workers"]["maxItems"] = MAX_HOLDERS
    schema["x-kubernetes-validations"] = [
        {
            "rule": f"self.metadata.name.size() <= {MAX_ADAPTER_NAME} && !self.metadata.name.contains('.')",
            "message": f"a LoRAAdapter's name has at most {MAX_ADAPTER_NAME} characters and no dot: jobs name it so",
        }
    ]
    return _definition(
        LoRAAdapter,
        short_name="lora",
        schema=schema,
        columns=[
            ("Model", "string", ".spec.model", "The model that it changes.", 0),
            ("Ready", "string", ".status.conditions[?(@.type=='Ready')].status", "Whether a worker holds it.", 0),
            ("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason", "Why.", 0),
            ("Rank", "integer", ".status.rank", "The largest rank of its layers.", 0),
            ("Digest", "string", ".status.shortDigest", "The beginning of its weights' SHA-256.", 0),
            ("Age", "date", ".metadata.creationTimestamp", "", 0),
        ],
        selectable=[],
    )


def _root_schema(kind: _Kind) -> dict[str, Any]:
    schema = structural_schema(kind)
    # The API server owns the schema of these.
    envelope = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    schema["properties"] = envelope | {name: schema["properties"][name] for name in ("spec", "status")}
    schema["required"] = ["spec"]
    return schema


def _immutability(properties: dict[str, Any]) -> dict[str, Any]:
    """Generate the CEL rule that only mutable fields of ``spec`` change.

    It is one rule for all fields, and compares the whole spec first: what a look at a field costs the API server grows
    with the number of fields, and the rules of ``spec`` run at every write of ``status`` too.
    """
    mutable = {GenerationJobSpec.model_fields[name].alias for name in GenerationJobSpec.MUTABLE}
    fixed = [name for name in properties if name not in mutable]
    # Not by optional fields (self.?name): what a comparison of those may cost has no bound that the API server takes.
    same = {
        name: f"(has(self.{name}) ? has(oldSelf.{name}) && self.{name} == oldSelf.{name} : !has(oldSelf.{name}))"
        for name in fixed
    }
    changed = "".join(f"!{same[name]} ? '{name}' : " for name in fixed[:-1]) + f"'{fixed[-1]}'"
    return {
        "rule": f"self == oldSelf || ({' && '.join(same.values())})",
        "messageExpression": f"'spec.' + ({changed}) + ' cannot be changed; create another GenerationJob instead'",
        "message": "only cancel, suspend, priority and ttlSecondsAfterFinished can be changed",
    }


def _cancel_is_final() -> dict[str, Any]:
    return {
        "rule": "!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)",
        "message": "spec.cancel cannot be taken back; create another GenerationJob instead",
        "fieldPath": ".cancel",
    }


def _seeds_fit() -> dict[str, Any]:
    return {
        "rule": f"!has(self.seed) || !has(self.numImages) || self.seed <= {MAX_SEED} - self.numImages + 1",
        "message": f"spec.seed: image n uses seed + n, which would be beyond {MAX_SEED}; lower the seed",
        "fieldPath": ".seed",
    }


def _inputs_begin_with_an_image() -> list[dict[str, Any]]:
    """Generate the CEL rules that a mask and a strength are of an image."""
    has_image = f"self.inputs.exists(input, input.role == '{InputRole.IMAGE}')"
    return [
        {
            "rule": f"!has(self.inputs) || {has_image}",
            "message": "spec.inputs: there is a mask without an image; add the image that it is of, with the role "
            "image",
            "fieldPath": ".inputs",
        },
        {
            "rule": "!has(self.strength) || has(self.inputs)",
            "message": "spec.strength: there is no image in spec.inputs that it could be of; add one, or leave it out",
            "fieldPath": ".strength",
        },
    ]


def _definition(
    kind: _Kind,
    short_name: str,
    schema: dict[str, Any],
    columns: list[tuple[str, str, str, str, int]],
    selectable: list[str],
    scale: dict[str, str] | None = None,
) -> dict[str, Any]:
    version: dict[str, Any] = {
        "name": meta.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}} | ({"scale": scale} if scale is not None else {}),
        "additionalPrinterColumns": [_column(*column) for column in columns],
        "schema": {"openAPIV3Schema": schema},
    }
    if selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.PLURAL}.{meta.GROUP}", "annotations": dict(KEPT)},
        "spec": {
            "group": meta.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.KIND,
                "listKind": f"{kind.KIND}List",
                "plural": kind.PLURAL,
                "singular": kind.KIND.lower(),
                "shortNames": [short_name],
                "categories": ["kubediffusion"],
            },
            "versions": [version],
        },
    }


def _column(name: str, kind: str, path: str, description: str, priority: int) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    if description:
        column["description"] = description
    if priority:
        column["priority"] = priority
    return column


def definitions() -> tuple[dict[str, Any], ...]:
    """Generate every CustomResourceDefinition."""
    return (generation_job_crd(), diffusion_model_crd(), lora_adapter_crd())
