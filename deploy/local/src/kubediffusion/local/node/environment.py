"""A container's environment and command line, as Kubernetes defines them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kubediffusion.local.node.objects import Container, KeyReference, NameReference, Pod, Variable

REFERENCE = re.compile(r"\$(?:\$|\((?P<name>[^)]*)\))")
SUBSCRIPT = re.compile(r"(?P<field>[\w.]+)\['(?P<key>[^']+)'\]")


class ConfigurationError(Exception):
    """A container refers to something that is not there (yet): an object, a key, or a field of the pod."""


@dataclass(frozen=True)
class Source:
    """A Secret or ConfigMap that a container takes values from."""

    kind: str
    name: str
    optional: bool


@dataclass(frozen=True)
class Facts:
    """What the node tells a pod beyond its manifest.

    Attributes:
        pod_ip: Of the downward API.
        host_ip: Of the downward API.
        devices: Variables that name its GPUs.
    """

    pod_ip: str
    host_ip: str
    devices: Mapping[str, str] = dataclasses.field(default_factory=dict)


# The content of each source that exists.
Contents = Mapping[tuple[str, str], Mapping[str, bytes]]


def sources(container: Container) -> Iterator[Source]:
    """Yield the Secrets and ConfigMaps that a container's environment comes from."""
    for group in container.env_from:
        for kind, whole in (("Secret", group.secret_ref), ("ConfigMap", group.config_map_ref)):
            if whole:
                yield Source(kind, whole.name, whole.optional)
    for variable in container.env:
        for kind, one in _keys(variable):
            yield Source(kind, one.name, one.optional)


def variables(container: Container, pod: Pod, facts: Facts, contents: Contents) -> dict[str, str]:
    """Return the variables that a container's manifest asks for.

    Later ones win over earlier ones and `env` over `envFrom`; ``$(NAME)`` stands for one that came before.

    Raises:
        ConfigurationError: A key or a field that is not optional does not exist.
    """
    result: dict[str, str] = {}
    for group in container.env_from:
        for kind, whole in (("Secret", group.secret_ref), ("ConfigMap", group.config_map_ref)):
            if whole:
                result |= _all_keys(kind, whole, group.prefix, contents)
    for variable in container.env:
        if variable.value_from is None:
            result[variable.name] = expand(variable.value, result)
        elif (value := _sourced(variable, pod, facts, contents)) is not None:
            result[variable.name] = value
    return result


def expand(text: str, known: Mapping[str, str]) -> str:
    """Put values in the place of ``$(NAME)``. An unknown name stays as it is, and ``$$`` is a dollar sign."""

    def value(reference: re.Match[str]) -> str:
        name = reference["name"]
        return "$" if name is None else known.get(name, reference[0])

    return REFERENCE.sub(value, text)


def field(path: str, pod: Pod, facts: Facts) -> str:
    """Return a field of the pod, as the downward API names it.

    Raises:
        ConfigurationError: There is no such field.
    """
    metadata = pod.metadata
    fields = {
        "metadata.name": metadata.name,
        "metadata.namespace": metadata.namespace,
        "metadata.uid": metadata.uid,
        "metadata.labels": _lines(metadata.labels),
        "metadata.annotations": _lines(metadata.annotations),
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": pod.spec.service_account_name,
        "status.podIP": facts.pod_ip,
        "status.podIPs": facts.pod_ip,
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
    }
    if path in fields:
        return fields[path]
    mappings = {"metadata.labels": metadata.labels, "metadata.annotations": metadata.annotations}
    subscript = SUBSCRIPT.fullmatch(path)
    if subscript is None or subscript["field"] not in mappings:
        raise ConfigurationError(f"a process node does not know the field {path}")
    # A label or annotation that is not there is the empty string, as with kubelet.
    return mappings[subscript["field"]].get(subscript["key"], "")


def _sourced(variable: Variable, pod: Pod, facts: Facts, contents: Contents) -> str | None:
    source = variable.value_from
    if source and source.field_ref:
        return field(source.field_ref.field_path, pod, facts)
    for kind, reference in _keys(variable):
        content = contents.get((kind, reference.name), {})
        if reference.key in content:
            return content[reference.key].decode()
        if not reference.optional:
            raise ConfigurationError(f'{kind} "{reference.name}" has no key "{reference.key}"')
    return None


def _keys(variable: Variable) -> Iterator[tuple[str, KeyReference]]:
    source = variable.value_from
    if source and source.secret_key_ref:
        yield "Secret", source.secret_key_ref
    if source and source.config_map_key_ref:
        yield "ConfigMap", source.config_map_key_ref


def _all_keys(kind: str, reference: NameReference, prefix: str, contents: Contents) -> dict[str, str]:
    content = contents.get((kind, reference.name))
    if content is None:
        if reference.optional:
            return {}
        raise ConfigurationError(f'{kind} "{reference.name}" does not exist')
    return {prefix + key: value.decode() for key, value in content.items()}


def _lines(mapping: Mapping[str, str]) -> str:
    return "\n".join(f'{key}="{value}"' for key, value in sorted(mapping.items()))
