"""Pydantic models to structural schemas of Kubernetes.

pydantic generates JSON Schema 2020-12 with references and unions; a CustomResourceDefinition takes a stricter dialect:
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
"""

from __future__ import annotations

from typing import Any

from kubediffusion.resources.schema import Schema

_KEPT = {
    "type", "format", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "multipleOf", "minItems",
    "maxItems", "maxProperties", "required", "x-kubernetes-validations", "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string",
}  # fmt: skip

_LARGEST_INT64 = 2**63 - 1


def structural_schema(kind: type[Schema]) -> dict[str, Any]:
    """Convert a resource, or a part of one, into a structural schema.

    Raises:
        TypeError: It has a union that structural schemas do not know.
    """
    schema = kind.model_json_schema(mode="validation", by_alias=True)
    return _convert(schema, schema.get("$defs", {}))


def _convert(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return _convert({**target, **{key: value for key, value in node.items() if key != "$ref"}}, definitions)
    if "anyOf" in node:
        return _convert_union(node, definitions)
    result = {key: value for key, value in node.items() if key in _KEPT}
    if result.get("format") == "int64" and result.get("maximum") == _LARGEST_INT64:
        # The format says it already, and the API server checks bounds as floats, where this one is out of range.
        del result["maximum"]
    if description := node.get("description"):
        result["description"] = " ".join(str(description).split())
    if node.get("type") == "object" and not node.get("x-kubernetes-preserve-unknown-fields"):
        _convert_object(node, definitions, result)
    if node.get("type") == "array":
        result["items"] = _convert(node["items"], definitions)
    return result


def _convert_object(node: dict[str, Any], definitions: dict[str, Any], result: dict[str, Any]) -> None:
    if properties := node.get("properties"):
        result["properties"] = {name: _convert(part, definitions) for name, part in properties.items()}
    elif isinstance(extra := node.get("additionalProperties"), dict):
        result["additionalProperties"] = _convert(extra, definitions)


def _convert_union(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in node["anyOf"] if option != {"type": "null"}]
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    if len(options) == 1:
        # An optional field: absence says "no value", so null is no value of its own.
        return _convert({**options[0], **rest}, definitions)
    if {option.get("type") for option in options} == {"string", "integer"}:
        described = _convert(rest, definitions)
        return {**described, "x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    raise TypeError(f"a structural schema has no such union: {options}")
