"""Kubernetes' strategic merge of a partial Pod template into a whole one. Pure.

https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Path = tuple[str, ...]

_CONTAINERS = ("containers", "ephemeralContainers", "initContainers")
_KEYS_IN_CONTAINER = {
    "env": "name",
    "ports": "containerPort",
    "volumeDevices": "devicePath",
    "volumeMounts": "mountPath",
}
MERGE_KEYS: dict[Path, str] = {
    ("spec", "hostAliases"): "ip",
    ("spec", "imagePullSecrets"): "name",
    ("spec", "resourceClaims"): "name",
    ("spec", "schedulingGates"): "name",
    ("spec", "topologySpreadConstraints"): "topologyKey",
    ("spec", "volumes"): "name",
    **{("spec", kind): "name" for kind in _CONTAINERS},
    **{("spec", kind, name): key for kind in _CONTAINERS for name, key in _KEYS_IN_CONTAINER.items()},
}
"""By which field the elements of a list are told apart, by the path of the list in a Pod template; a list that is not
here replaces the whole of the other's.

From ``x-kubernetes-patch-merge-key`` in the API server's ``/openapi/v2``, with which a test compares it."""

ONE_SOURCE: frozenset[Path] = frozenset(
    {("spec", "resourceClaims"), ("spec", "volumes"), *(("spec", kind, "env") for kind in _CONTAINERS)}
)
"""Lists of whose elements each has one source: where the patch names another, what it does not name goes.

For volumes and claims Kubernetes' strategy ``retainKeys`` says so, by which ``kubectl apply`` does the same. A variable
has a value or a reference, and with both it is refused."""

DIRECTIVE = "$patch"
"""In a map: ``delete`` takes it away, ``replace`` has nothing of the other kept."""


class MergeError(ValueError):
    """A patch cannot be merged.

    Attributes:
        path: Where in the Pod template.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.path = path


def merge_pod_template(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Pod template with a partial one merged over it. Neither argument is changed.

    Args:
        base: The whole one.
        patch: The partial one. A field that is null in it takes away the other's.

    Raises:
        MergeError: An element of a list lacks the field by which it is told apart, or has none that tells; something
            else stands in the place of a list or a map; or a directive is not known.
    """
    return _merge_maps(base, patch, ())


def _merge_maps(base: Mapping[str, Any], patch: Mapping[str, Any], path: Path) -> dict[str, Any]:
    directive = patch.get(DIRECTIVE)
    if directive == "delete":
        return {}
    # Not a set: the directive may be a map, which none can be asked for.
    if directive not in (None, "replace", "merge"):
        raise MergeError(words(path), f"{DIRECTIVE}: {directive} is none of delete, merge and replace")
    merged = {} if directive == "replace" else dict(base)
    for name, value in patch.items():
        if name == DIRECTIVE:
            continue
        if name.startswith("$"):
            raise MergeError(words((*path, name)), f"the only directive that is known is {DIRECTIVE}")
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge_values(merged.get(name), value, (*path, name))
    return merged


def _merge_values(base: Any, value: Any, path: Path) -> Any:
    key = MERGE_KEYS.get(path)
    if key is not None:
        if not isinstance(value, list):
            raise MergeError(words(path), "must be a list")
        return _merge_lists(base or [], value, path, key)
    if isinstance(value, Mapping):
        if base is not None and not isinstance(base, Mapping):
            raise MergeError(words(path), "must not be a map")
        return _merge_maps(base or {}, value, path)
    if isinstance(base, Mapping):
        raise MergeError(words(path), "must be a map")
    if isinstance(base, list) and not isinstance(value, list):
        raise MergeError(words(path), "must be a list")
    return value


def _merge_lists(base: list[Any], patch: list[Any], path: Path, key: str) -> list[Any]:
    """Return a list with another merged in: its elements in their order, then those that only the patch has."""
    for number, item in enumerate(patch):
        if not isinstance(item, Mapping):
            raise MergeError(f"{words(path)}[{number}]", "must be a map")
    replaces = any(item.get(DIRECTIVE) == "replace" and key not in item for item in patch)
    merged = [] if replaces else list(base)
    for number, item in enumerate(patch):
        if replaces and item.get(DIRECTIVE) == "replace" and key not in item:
            continue
        if key not in item:
            raise MergeError(f"{words(path)}[{number}].{key}", "is missing: elements are merged by it")
        if not isinstance(item[key], str | int):
            raise MergeError(f"{words(path)}[{number}].{key}", "must be a text or a number: elements are merged by it")
        place = next((n for n, known in enumerate(merged) if known.get(key) == item[key]), None)
        if item.get(DIRECTIVE) == "delete":
            merged = [known for known in merged if known.get(key) != item[key]]
        elif place is None:
            merged.append(_merge_maps({}, item, path))
        else:
            known = merged[place]
            if path in ONE_SOURCE:
                known = {name: value for name, value in known.items() if name in item}
            merged[place] = _merge_maps(known, item, path)
    return merged


def words(path: Path) -> str:
    """Return a path as people write it."""
    return ".".join(path)
