"""The pages of the reference, made of the typed resources, the settings, the metrics, the chart and the HTTP API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from pydantic_settings import BaseSettings

from kubediffusion.api.app import create_app
from kubediffusion.api.metrics import Metrics as ApiMetrics
from kubediffusion.api.settings import Settings as ApiSettings
from kubediffusion.api.webhooks.metrics import Metrics as WebhookMetrics
from kubediffusion.api.webhooks.settings import WebhookSettings
from kubediffusion.operator import metrics as operator_metrics
from kubediffusion.operator.settings import Settings as OperatorSettings
from kubediffusion.worker.metrics import Metrics as WorkerMetrics
from kubediffusion.worker.settings import Settings as WorkerSettings

Schema = dict[str, Any]

CONSTRAINTS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "`{}`",
}
"""What is said of a field besides its type, in OpenAPI's words and in ours."""


def pages(repository: Path) -> Iterator[tuple[str, str]]:
    """Yield the file name and the Markdown of each page."""
    for file in sorted((repository / "charts/kubediffusion/crds").glob("*.yaml")):
        definition = yaml.safe_load(file.read_text())
        yield f"{definition['spec']['names']['singular']}.md", custom_resource(definition)
    yield "settings.md", settings_page()
    yield "metrics.md", metrics_page()
    yield "values.md", values_page((repository / "charts/kubediffusion/values.yaml").read_text())
    yield "http.md", http_page(create_app(ApiSettings()).openapi())


def custom_resource(definition: Schema) -> str:
    """Return the page of a custom resource: its columns, and each field of spec and status."""
    names = definition["spec"]["names"]
    version = definition["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    text = [
        f"# {names['kind']}",
        schema.get("description", ""),
        f"`{definition['spec']['group']}/{version['name']}`, namespaced, short names "
        + ", ".join(f"`{name}`" for name in names.get("shortNames", [])),
        "`kubectl explain` says the same. A field that is required is marked with *.",
    ]
    for part in ("spec", "status"):
        rows = fields(schema["properties"][part])
        text += [f"## {part}", table(("field", "type", "meaning"), rows)]
    columns = ((column["name"], f"`{column['jsonPath']}`") for column in version["additionalPrinterColumns"])
    text += ["## Columns of `kubectl get`", table(("column", "from"), columns)]
    return join(text)


def fields(schema: Schema, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield path, type and meaning of each field below a schema, depth first."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        mark = "*" if name in required else ""
        yield f"`{path}`{mark}", kind(field), meaning(field)
        item = field.get("items", {})
        yield from fields(field, f"{path}.")
        yield from fields(item, f"{path}[].")


def kind(field: Schema) -> str:
    """Return the type of a field, as one reads it."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if field.get("type") == "array":
        return f"list of {kind(field['items'])}"
    if "additionalProperties" in field:
        return f"map of {kind(field['additionalProperties'])}"
    return str(field.get("format") or field.get("type", "any"))


def meaning(field: Schema) -> str:
    """Return a field's description, bounds and default."""
    said = [" ".join(field.get("description", "").split())]
    bounds = [words.format(field[name]) for name, words in CONSTRAINTS.items() if name in field]
    said += [f"{', '.join(bounds).capitalize()}."] if bounds else []
    said += [f"Default `{field['default']}`."] if "default" in field else []
    return " ".join(part for part in said if part)


def settings_page() -> str:
    """Return the page of the environment variables that each part reads."""
    parts = (
        ("Operator", OperatorSettings),
        ("API", ApiSettings),
        ("Deliverer of webhooks", WebhookSettings),
        ("Worker", WorkerSettings),
    )
    text = [
        "# Settings",
        "Environment variables of each part. The chart sets them by its [values](values.md).",
        "Workers get theirs from the operator, and from `spec.workers.env` of their DiffusionModel.",
    ]
    for name, settings in parts:
        text += [f"## {name}", table(("variable", "default", "meaning"), variables(settings))]
    return join(text)


def variables(settings: type[BaseSettings]) -> Iterator[tuple[str, str, str]]:
    """Yield name, default and meaning of each environment variable of some settings."""
    prefix = settings.model_config.get("env_prefix", "")
    for name, info in settings.model_fields.items():
        default = "required" if info.is_required() else f"`{_plain(info.get_default(call_default_factory=True))}`"
        variable = info.alias or f"{prefix}{name}".upper()
        yield f"`{variable}`", default if default != "``" else "", " ".join((info.description or "").split())


def _plain(value: Any) -> str:
    return "" if value is None else str(getattr(value, "value", value))


def metrics_page() -> str:
    """Return the page of the metrics of each part."""
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    of_webhooks = CollectorRegistry()
    WebhookMetrics(of_webhooks)
    ours = [value for value in vars(operator_metrics).values() if isinstance(value, MetricWrapperBase)]
    parts: list[tuple[str, list[Metric]]] = [
        ("Operator", [metric for collector in ours for metric in collector.describe()]),
        ("API", _described(ApiMetrics().registry)),
        ("Deliverer of webhooks", _described(of_webhooks)),
        ("Worker", _described(registry)),
    ]
    text = [
        "# Metrics",
        "In Prometheus' format at `/metrics` of each part, beside those of Python and of the process.",
        "What to do about them is on the page [Operate it](../docs/operations.md#alerts).",
    ]
    for name, found in parts:
        rows = ((f"`{_exposed(metric)}`", metric.type, metric.documentation) for metric in found)
        text += [f"## {name}", table(("metric", "type", "meaning"), sorted(rows))]
    return join(text)


def _described(registry: CollectorRegistry) -> list[Metric]:
    found = {metric.name: metric for metric in registry.collect()}
    return [metric for name, metric in found.items() if name.startswith("kubediffusion_")]


def _exposed(metric: Metric) -> str:
    return f"{metric.name}_total" if metric.type == "counter" else str(metric.name)


def values_page(values: str) -> str:
    """Return the page of the chart's values, which say themselves what they are."""
    return join(
        ["# Values of the chart", "`helm show values charts/kubediffusion` prints the same.", f"```yaml\n{values}```"]
    )


def http_page(document: Schema) -> str:
    """Return the page of the HTTP operations."""
    text = [
        "# HTTP operations",
        "Every operation of the OpenAPI document at `/openapi.json`; `/docs` of a running API tries them.",
        "How to use them is on the page [HTTP API](../docs/api.md).",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            text += [f"## `{method.upper()} {path}`", operation.get("description") or operation.get("summary", "")]
            parameters = operation.get("parameters", [])
            rows = (
                (f"`{found['name']}`{'*' if found.get('required') else ''}", found["in"], found.get("description", ""))
                for found in parameters
            )
            text += [table(("parameter", "in", "meaning"), rows)] if parameters else []
            answers = ((f"`{status}`", answer["description"]) for status, answer in operation["responses"].items())
            text += [table(("status", "answer"), answers)]
    return join(text)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    # Within code it is shown as it is; elsewhere it would begin a tag.
    return line if "`" in line else line.replace("<", "&lt;")


def join(paragraphs: Iterable[str]) -> str:
    """Return paragraphs as one text."""
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"
