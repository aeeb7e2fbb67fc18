"""A partial Pod template laid over that of a worker, unless it would break what the operator relies on. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kubediffusion.operator.containers import CONTAINER
from kubediffusion.operator.strategic_merge import MergeError, merge_pod_template
from kubediffusion.resources import meta

MOST_CHARACTERS = 65_536
"""Characters of a partial template, as JSON: a Job is stored with it for each worker, and an object has 1.5 MiB."""

OWN_PREFIXES = (f"{meta.GROUP}/", "batch.kubernetes.io/")
OWN_LABELS = frozenset({"controller-uid", "job-name"})
"""By these the operator, and the Job controller, know what is theirs."""

_ENDS = "the operator alone decides when a worker ends"
_IDENTITY = "admission policies know a worker by its identity; set workers.serviceAccountName"
_READINESS = "a worker is given jobs by its readiness, and ended by its liveness"
_KEPT_OF_POD = {
    "restartPolicy": "a worker that has crashed is replaced, not started again",
    "terminationGracePeriodSeconds": "set workers.terminationGracePeriodSeconds",
    "activeDeadlineSeconds": _ENDS,
    "serviceAccountName": _IDENTITY,
    "serviceAccount": _IDENTITY,
    "automountServiceAccountToken": _IDENTITY,
}
_KEPT_OF_CONTAINER = {
    "command": "it is what makes the container a worker",
    "args": "it is what makes the container a worker",
    "readinessProbe": _READINESS,
    "livenessProbe": _READINESS,
    "startupProbe": _READINESS,
    "restartPolicy": "a worker that has crashed is replaced, not started again",
    "restartPolicyRules": "a worker that has crashed is replaced, not started again",
    "terminationMessagePath": "the operator reads there why a worker ended",
    "terminationMessagePolicy": "the operator reads there why a worker ended",
}
_KEPT_ENTRIES = (
    ("env", "name", "the operator sets it"),
    ("ports", "containerPort", "probes and metrics use it"),
    ("volumeMounts", "mountPath", "another field of the model, or a setting of the operator, mounts it"),
)


class TemplateError(ValueError):
    """A partial template is refused; the text says which field of it, and why."""


def lay_over(
    template: Mapping[str, Any], partial: Mapping[str, Any], source: str, *, own: Mapping[str, Any], replaceable: str
) -> dict[str, Any]:
    """Return a worker's Pod template with a partial one merged over it.

    Args:
        template: The worker's, with the container named ``worker``.
        partial: The partial one.
        source: What to call it, where it is refused.
        own: What of the worker's is the operator's own.
        replaceable: The volume of the worker that may be another one.

    Raises:
        TemplateError: It cannot be merged, or what comes of it would not be a worker any more.
    """
    if (length := len(json.dumps(partial))) > MOST_CHARACTERS:
        raise TemplateError(f"{source}: has {length} characters, and may have {MOST_CHARACTERS}")
    try:
        merged = merge_pod_template(template, partial)
    except MergeError as error:
        raise TemplateError(f"{source}.{error.path}: {error}") from None
    for path, why in _broken(own, merged, replaceable):
        raise TemplateError(f"{source}.{path}: cannot be set here: {why}")
    return merged


def _broken(own: Mapping[str, Any], merged: Mapping[str, Any], replaceable: str) -> Iterator[tuple[str, str]]:
    """Yield what a merged template lacks of the worker's, or has beside: the field, and why it may not.

    The result is looked at, not the patch: whatever way a patch has to say it, this is what would run.
    """
    yield from _broken_metadata(own["metadata"], merged.get("metadata", {}))
    before, after = own["spec"], merged.get("spec", {})
    yield from _changed("spec", before, after, _KEPT_OF_POD)
    volumes = [volume for volume in before["volumes"] if volume["name"] != replaceable]
    why = "another field of the model, or a setting of the operator, mounts it"
    yield from _lost("spec.volumes", volumes, after.get("volumes"), "name", why)
    containers = {item["name"]: item for item in after.get("containers") or ()}
    if CONTAINER not in containers:
        yield f"spec.containers[{CONTAINER}]", "it is the worker itself"
        return
    if others := [name for name in containers if name != CONTAINER]:
        yield (
            f"spec.containers[{others[0]}]",
            f"a worker's Pod ends with its container {CONTAINER}; a sidecar is one of initContainers, restarted Always",
        )
    yield from _broken_container(before["containers"][0], containers[CONTAINER], replaceable)


def _broken_metadata(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if others := after.keys() - {"labels", "annotations"}:
        yield f"metadata.{min(others)}", "a template has labels and annotations"
    for kind in ("labels", "annotations"):
        own, found = before.get(kind, {}), after.get(kind) or {}
        for name in (*own, *found):
            if own.get(name) != found.get(name) and (
                name in own or name.startswith(OWN_PREFIXES) or name in OWN_LABELS
            ):
                yield f"metadata.{kind}[{name}]", "the operator finds its workers by it"


def _broken_container(
    before: Mapping[str, Any], after: Mapping[str, Any], replaceable: str
) -> Iterator[tuple[str, str]]:
    path = f"spec.containers[{CONTAINER}]"
    yield from _changed(path, before, after, _KEPT_OF_CONTAINER)
    for name, key, why in _KEPT_ENTRIES:
        own = [item for item in before[name] if item.get("name") != replaceable or name != "volumeMounts"]
        yield from _lost(f"{path}.{name}", own, after.get(name), key, why)
    for source in before["envFrom"]:
        if source not in (after.get("envFrom") or ()):
            yield f"{path}.envFrom", f"must hold {json.dumps(source)} too: a worker has its storage settings from it"
    for mount in before["volumeMounts"]:
        if mount["name"] == replaceable:
            found = [item for item in after.get("volumeMounts") or () if item["mountPath"] == mount["mountPath"]]
            if not found or found[0].get("readOnly"):
                yield f"{path}.volumeMounts[{mount['mountPath']}]", "a worker must be able to write there"


def _changed(
    path: str, before: Mapping[str, Any], after: Mapping[str, Any], kept: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    yield from ((f"{path}.{name}", why) for name, why in kept.items() if before.get(name) != after.get(name))


def _lost(path: str, before: Iterable[Mapping[str, Any]], after: Any, key: str, why: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{path}[{item[key]}]", why) for item in before if item not in (after or ()))
