"""ValidatingAdmissionPolicies: what the API server refuses beyond what a schema can say.

Who may write a job's status is decided by permission, not by a name: the operator is whoever holds the verb ``bind``
on generationjobs, as the RBAC system uses virtual verbs (``bind`` and ``escalate`` on roles), and the deliverer of
webhooks whoever holds ``deliver``. Everybody else must be the very Pod that ``status.worker`` names, proven by a
Pod-bound token, and writes of Pods nothing but its own condition of its own Pod:
https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#additional-metadata-in-pod-bound-tokens
"""

from __future__ import annotations

from typing import Any

from kubediffusion.resources import meta
from kubediffusion.resources.conditions import PodConditionType
from kubediffusion.resources.diffusion_model import DiffusionModel, JobLimits
from kubediffusion.resources.generation_job import GenerationJobStatus, Phase
from kubediffusion.resources.transitions import Writer, writer_rule

_OPERATORS_FIELDS = ("worker", "attempt", "retries", "suspects")
_OLD_PHASE = "variables.old.?phase.orValue('Pending')"
_NEW_PHASE = "variables.new.?phase.orValue('Pending')"
_SAME_BUT_WEBHOOK = " && ".join(
    f"variables.new.?{field.alias} == variables.old.?{field.alias}"
    for name, field in GenerationJobStatus.model_fields.items()
    if name != "webhook"
)


def render() -> dict[str, list[dict[str, Any]]]:
    """Generate each policy with its binding, by file name."""
    return {
        "status-writers": status_writers(),
        "image-releases": image_releases(),
        "worker-pods": worker_pods(),
        "model-limits": model_limits(),
        "webhooks": webhooks(),
    }


def status_writers() -> list[dict[str, Any]]:
    """Generate the policy that permits each of the three writers its own fields and transitions only."""
    name = f"status-writers.{meta.GROUP}"
    outcomes = ", ".join(repr(str(phase)) for phase in (Phase.RUNNING, Phase.SUCCEEDED))
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "resourceRules": [_rule(f"{meta.GENERATION_JOBS}/status", "UPDATE")],
        },
        "variables": [
            {"name": "old", "expression": "oldObject.?status.orValue({})"},
            {"name": "new", "expression": "object.?status.orValue({})"},
            {
                "name": "isOperator",
                "expression": f"authorizer.group('{meta.GROUP}').resource('{meta.GENERATION_JOBS}')"
                f".namespace(request.namespace).check('{meta.BIND_VERB}').allowed()",
            },
            # Last in what it is asked in, so that a write of operator or worker asks for no other right.
            {"name": "tells", "expression": "variables.new.?webhook != variables.old.?webhook"},
            {
                "name": "isDeliverer",
                "expression": f"authorizer.group('{meta.GROUP}').resource('{meta.GENERATION_JOBS}')"
                f".namespace(request.namespace).check('{meta.DELIVER_VERB}').allowed()",
            },
            {"name": "tellsAlone", "expression": f"variables.tells && ({_SAME_BUT_WEBHOOK})"},
            {
                "name": "pod",
                "expression": "request.userInfo.?extra[?'authentication.kubernetes.io/pod-name'].orValue([]).join('')",
            },
        ],
        "validations": [
            {
                "expression": "variables.isOperator || variables.tellsAlone || "
                "(variables.pod != '' && variables.pod == variables.old.?worker.orValue(''))",
                "message": "only the worker that status.worker names, with its Pod-bound token, may report on this job",
                "reason": "Forbidden",
            },
            {
                "expression": "!variables.tells || variables.isDeliverer",
                "message": "status.webhook is the deliverer's of webhooks",
                "reason": "Forbidden",
            },
            {
                "expression": "variables.isOperator || ("
                + " && ".join(f"variables.new.?{field} == variables.old.?{field}" for field in _OPERATORS_FIELDS)
                + ")",
                "message": "status.worker, attempt, retries and suspects are the operator's",
                "reason": "Forbidden",
            },
            {
                # A worker may report without a change of phase (progress, a condition) only on a job that it has.
                "expression": f"variables.isOperator || {_OLD_PHASE} == {_NEW_PHASE} || "
                f"({writer_rule(Writer.WORKER, _OLD_PHASE, _NEW_PHASE)})",
                "message": "a worker takes a job from Scheduled to Running, and from either to Succeeded or Failed",
                "reason": "Forbidden",
            },
            {
                "expression": f"!variables.isOperator || {_OLD_PHASE} == {_NEW_PHASE} || "
                f"!({_NEW_PHASE} in [{outcomes}])",
                "message": "Running and Succeeded are the worker's to report",
                "reason": "Forbidden",
            },
        ],
    }
    return _policy_and_binding(name, spec, {})


def image_releases() -> list[dict[str, Any]]:
    """Return the policy that leaves of a right to patch all jobs the release of deleted ones.

    Kubernetes deletes what a namespace has in no order: the operator's RoleBinding may go before the jobs that its
    finalizer holds, which would keep the namespace for ever. Therefore the operator may patch jobs everywhere, and this
    policy lets one who may not bind the jobs of a namespace take that finalizer from deleted ones, and say what holds
    them.
    """
    name = f"image-releases.{meta.GROUP}"
    jobs = f"authorizer.group('{meta.GROUP}').resource('{meta.GENERATION_JOBS}')"
    here = "namespace(request.namespace)"
    old, new = "oldObject.metadata", "object.metadata"
    others = f"filter(key, key != '{meta.IMAGES_HELD_ANNOTATION}')"
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [_rule(meta.GENERATION_JOBS, "UPDATE")]},
        "matchConditions": [
            {"name": "service-account", "expression": "request.userInfo.username.startsWith('system:serviceaccount:')"},
            {
                "name": "releases-only",
                "expression": f"{jobs}.{here}.check('{meta.RELEASE_VERB}').allowed() && "
                f"!{jobs}.{here}.check('{meta.BIND_VERB}').allowed()",
            },
        ],
        "validations": [
            {
                "expression": f"has({old}.deletionTimestamp) && object.spec == oldObject.spec && "
                f"{new}.?labels == {old}.?labels && {new}.?ownerReferences == {old}.?ownerReferences && "
                f"{new}.?annotations.orValue({{}}).{others}.all(key, key in {old}.?annotations.orValue({{}}) && "
                f"{new}.annotations[key] == {old}.annotations[key]) && "
                f"{old}.?annotations.orValue({{}}).{others}.all(key, key in {new}.?annotations.orValue({{}})) && "
                f"({new}.?finalizers == {old}.?finalizers || {new}.?finalizers.orValue([]) == "
                f"{old}.?finalizers.orValue([]).filter(held, held != '{meta.IMAGES_FINALIZER}'))",
                "message": f"who may only release jobs takes the finalizer {meta.IMAGES_FINALIZER} from deleted ones",
                "reason": "Forbidden",
            },
        ],
    }
    return _policy_and_binding(name, spec, {})


def worker_pods() -> list[dict[str, Any]]:
    """Generate the policy that permits a worker to write two conditions of its own Pod, and nothing else of any Pod.

    A right to patch ``pods/status`` is one for all Pods of the namespace, and for all that a status says, on which
    Services, Jobs and schedulers act; labels and annotations pass that way too. A worker is known by its rights, as the
    operator is: it may report on jobs and not bind them. Nodes, controllers and administrators are not concerned.
    """
    name, ours = f"worker-pods.{meta.GROUP}", " and ".join(PodConditionType)
    jobs = f"authorizer.group('{meta.GROUP}').resource('{meta.GENERATION_JOBS}')"
    here = "namespace(request.namespace)"
    metadata = ("labels", "annotations", "finalizers", "ownerReferences")
    kept = " && ".join(f"object.metadata.?{field} == oldObject.metadata.?{field}" for field in metadata)
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods/status"]}
            ],
        },
        "matchConditions": [
            # First, as it costs least: nearly all that writes here are nodes.
            {"name": "service-account", "expression": "request.userInfo.username.startsWith('system:serviceaccount:')"},
            {
                "name": "worker",
                "expression": f"{jobs}.subresource('status').{here}.check('patch').allowed() && "
                f"!{jobs}.{here}.check('{meta.BIND_VERB}').allowed()",
            },
        ],
        "variables": [
            {
                "name": "pod",
                "expression": "request.userInfo.?extra[?'authentication.kubernetes.io/pod-uid'].orValue([]).join('')",
            },
            # Not by their types: every field is compared, those of later Kubernetes versions too.
            {"name": "old", "expression": "dyn(oldObject.?status.orValue({}))"},
            {"name": "new", "expression": "dyn(object.?status.orValue({}))"},
            {"name": "others", "expression": _foreign_conditions("variables.new")},
            {"name": "otherOnes", "expression": _foreign_conditions("variables.old")},
        ],
        "validations": [
            {
                "expression": "variables.pod != '' && variables.pod == oldObject.metadata.uid",
                "message": "a worker may write the status of no Pod but its own, with its Pod-bound token",
                "reason": "Forbidden",
            },
            {
                "expression": f"{kept} && variables.others == variables.otherOnes && "
                "variables.new.all(key, key == 'conditions' || "
                "(key in variables.old && variables.new[key] == variables.old[key])) && "
                "variables.old.all(key, key in variables.new)",
                "message": f"a worker may write no more of its Pod than the conditions {ours}",
                "reason": "Forbidden",
            },
        ],
    }
    return _policy_and_binding(name, spec, {})


def _foreign_conditions(status: str) -> str:
    ours = ", ".join(f"'{kind}'" for kind in PodConditionType)
    return f"{status}.?conditions.orValue([]).filter(condition, !(condition.type in [{ours}]))"


def webhooks() -> list[dict[str, Any]]:
    """Generate the policy that lets those alone create jobs with a webhook who may.

    Where nothing delivers webhooks nobody but an administrator holds the verb, so that a job that would tell nobody is
    refused and not created.
    """
    name = f"webhooks.{meta.GROUP}"
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [_rule(meta.GENERATION_JOBS, "CREATE")]},
        "matchConditions": [{"name": "has-a-webhook", "expression": "has(object.spec.webhook)"}],
        "validations": [
            {
                "expression": f"authorizer.group('{meta.GROUP}').resource('{meta.GENERATION_JOBS}')"
                f".namespace(request.namespace).check('{meta.WEBHOOK_VERB}').allowed()",
                "message": "spec.webhook: nobody delivers webhooks here, or you may not ask for them; it takes the "
                f"verb {meta.WEBHOOK_VERB} on {meta.GENERATION_JOBS}, which the chart gives with webhooks.enabled",
                "reason": "Forbidden",
            },
        ],
    }
    return _policy_and_binding(name, spec, {})


def model_limits() -> list[dict[str, Any]]:
    """Generate the policy that refuses the creation of a job that exceeds its model's limits.

    The policy's parameters are all DiffusionModels of the namespace: it is evaluated once for each, and lets pass
    where the job means another model. Seeing one at a time, it cannot tell which of several default models is the
    newest: while there are several, a job that names none must fit each of them.
    """
    name = f"model-limits.{meta.GROUP}"
    used = "(variables.named ? object.spec.model == params.metadata.name : variables.isDefault)"
    validations = []
    for info in JobLimits.model_fields.values():
        alias, default = info.alias, info.default
        limit = f"params.spec.?limits.?{alias}.orValue({default})"
        validations.append(
            {
                "expression": f"!{used} || !has(object.spec.{alias}) || object.spec.{alias} <= {limit}",
                "messageExpression": f"'spec.{alias}: ' + string(object.spec.{alias}) + ' exceeds the limit ' + "
                f"string({limit}) + ' of model ' + params.metadata.name",
                "message": f"spec.{alias} exceeds the limit of the model",
                "reason": "Invalid",
            }
        )
    spec = {
        # For up to 30 s after its own restart an API server does not know the custom resources that policies take
        # parameters from, and Fail would refuse every job meanwhile. The operator checks the same limits again.
        "failurePolicy": "Ignore",
        "paramKind": {"apiVersion": meta.API_VERSION, "kind": DiffusionModel.KIND},
        "matchConstraints": {"resourceRules": [_rule(meta.GENERATION_JOBS, "CREATE")]},
        "variables": [
            {"name": "named", "expression": "has(object.spec.model)"},
            {
                "name": "isDefault",
                "expression": "has(params.metadata.annotations) && "
                f"params.metadata.annotations[?'{meta.DEFAULT_MODEL_ANNOTATION}'].orValue('') == 'true'",
            },
        ],
        "validations": validations,
    }
    # No model at all is no reason to refuse: the job may have been applied before its model.
    return _policy_and_binding(name, spec, {"paramRef": {"selector": {}, "parameterNotFoundAction": "Allow"}})


def _rule(resource: str, operation: str) -> dict[str, Any]:
    return {
        "apiGroups": [meta.GROUP],
        "apiVersions": [meta.VERSION],
        "operations": [operation],
        "resources": [resource],
    }


def _policy_and_binding(name: str, spec: dict[str, Any], binding: dict[str, Any]) -> list[dict[str, Any]]:
    version = "admissionregistration.k8s.io/v1"
    return [
        {"apiVersion": version, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name}, "spec": spec},
        {
            "apiVersion": version,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"], **binding},
        },
    ]
