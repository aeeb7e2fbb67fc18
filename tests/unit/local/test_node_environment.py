"""A container's environment, by Kubernetes' rules."""

from __future__ import annotations

from typing import Any

import pytest

from kubediffusion.local.node import environment
from kubediffusion.local.node.environment import ConfigurationError, Facts, Source
from kubediffusion.local.node.objects import Container, Pod

FACTS = Facts(pod_ip="127.9.0.2", host_ip="127.0.0.1")


def a_pod(**metadata: Any) -> Pod:
    return Pod.from_wire(
        {
            "metadata": {"name": "p", "namespace": "n", "uid": "u", **metadata},
            "spec": {"containers": [], "nodeName": "node", "serviceAccountName": "runner"},
        }
    )


def variables(container: dict[str, Any], contents: Any = None, pod: Pod | None = None) -> dict[str, str]:
    parsed = Container.from_wire({"name": "main", **container})
    return environment.variables(parsed, pod or a_pod(), FACTS, contents or {})


def from_field(path: str) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}


def from_key(kind: str, name: str, key: str, **rest: Any) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {kind: {"name": name, "key": key, **rest}}}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("$(A)", "1"),
        ("$(A)-$(B)", "1-two"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$A costs 5$", "$A costs 5$"),
        ("$(A", "$(A"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expanded: str) -> None:
    assert environment.expand(text, {"A": "1", "B": "two"}) == expanded


def test_a_variable_may_refer_to_those_before_it_only() -> None:
    env = [{"name": "A", "value": "$(B)"}, {"name": "B", "value": "b"}, {"name": "C", "value": "$(B)"}]
    assert variables({"env": env}) == {"A": "$(B)", "B": "b", "C": "b"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "n"),
        ("metadata.uid", "u"),
        ("metadata.labels['app']", "x"),
        ("metadata.labels['absent']", ""),
        ("metadata.annotations['example.com/note']", "hi"),
        ("spec.nodeName", "node"),
        ("spec.serviceAccountName", "runner"),
        ("status.podIP", "127.9.0.2"),
        ("status.hostIP", "127.0.0.1"),
    ],
)
def test_the_downward_api_tells_fields_of_the_pod(path: str, value: str) -> None:
    pod = a_pod(labels={"app": "x"}, annotations={"example.com/note": "hi"})
    assert variables({"env": [from_field(path)]}, pod=pod) == {"X": value}


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"spec\.colour"):
        variables({"env": [from_field("spec.colour")]})


KINDS = pytest.mark.parametrize(("reference", "kind"), [("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")])


@KINDS
def test_a_key_gives_its_value(reference: str, kind: str) -> None:
    assert variables({"env": [from_key(reference, "s", "k")]}, {(kind, "s"): {"k": b"v"}}) == {"X": "v"}


@KINDS
def test_a_missing_key_is_refused_by_name(reference: str, kind: str) -> None:
    with pytest.raises(ConfigurationError, match=f'{kind} "s" has no key "k"'):
        variables({"env": [from_key(reference, "s", "k")]}, {(kind, "s"): {}})


@pytest.mark.parametrize("reference", ["secretKeyRef", "configMapKeyRef"])
def test_a_missing_optional_key_leaves_the_variable_out(reference: str) -> None:
    assert variables({"env": [from_key(reference, "s", "k", optional=True)]}) == {}


def test_all_keys_of_a_source_come_before_single_variables() -> None:
    container = {
        "envFrom": [{"prefix": "S_", "secretRef": {"name": "s"}}, {"configMapRef": {"name": "c"}}],
        "env": [{"name": "b", "value": "mine, not $(S_a)"}],
    }
    contents = {("Secret", "s"): {"a": b"1"}, ("ConfigMap", "c"): {"b": b"2"}}
    assert variables(container, contents) == {"S_a": "1", "b": "mine, not 1"}


def test_a_missing_source_is_refused_unless_it_is_optional() -> None:
    with pytest.raises(ConfigurationError, match='Secret "s" does not exist'):
        variables({"envFrom": [{"secretRef": {"name": "s"}}]})
    assert variables({"envFrom": [{"secretRef": {"name": "s", "optional": True}}]}) == {}


def test_sources_name_every_object_that_is_needed() -> None:
    container = Container.from_wire(
        {
            "name": "main",
            "envFrom": [{"secretRef": {"name": "whole"}}],
            "env": [{"name": "A", "value": "1"}, from_key("configMapKeyRef", "part", "k", optional=True)],
        }
    )
    assert list(environment.sources(container)) == [Source("Secret", "whole", False), Source("ConfigMap", "part", True)]
