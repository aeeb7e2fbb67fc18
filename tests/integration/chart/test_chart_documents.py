"""What the chart says of itself: its values' table and schema, its alerts, its dashboard."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry

from integration.chart.helm_kit import Helm, pick
from integration.chart.matrix import EVERYTHING
from kubediffusion.api.metrics import Metrics as ApiMetrics
from kubediffusion.local.layout import CHART
from kubediffusion.operator import metrics as operator_metrics
from kubediffusion.worker.metrics import Metrics as WorkerMetrics

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())

SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_every_value_is_documented() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    undocumented = []
    for above, line in itertools.pairwise(lines):
        if re.match(r"\s*[A-Za-z0-9]+:", line) and not above.strip().startswith("#"):
            opens_group = re.fullmatch(r"\s*[A-Za-z0-9]+:", line) is not None
            inside = line.lstrip().split(":")[0] in {"requests", "limits", "topologyKey", "whenUnsatisfiable"}
            label = line.strip().startswith("grafana_dashboard")
            if not (opens_group or inside or label):
                undocumented.append(line)
    assert not undocumented


def test_the_schema_knows_every_value_and_no_other() -> None:
    def compare(values: Any, schema: Any, path: str) -> None:
        while "$ref" in schema:
            schema = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[1]]
        if "properties" not in schema or not isinstance(values, dict):
            return
        assert schema["additionalProperties"] is False, path
        optional = {"global"} if path == "" else {"requests", "limits", "claims"}
        assert values.keys() | optional == schema["properties"].keys() | optional, path
        for name, value in values.items():
            compare(value, schema["properties"][name], f"{path}.{name}")

    compare(VALUES, SCHEMA, "")


def metric_names() -> set[str]:
    """Every name that a part's endpoint can show."""
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    assert operator_metrics.LAST_PASS
    families = [f for r in (REGISTRY, registry, ApiMetrics().registry) for f in r.collect()]
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {family.name + suffix for family in families for suffix in suffixes.get(family.type, ())}


@pytest.mark.parametrize("name", ["alerts.yaml", "dashboard.json"])
def test_alerts_and_dashboard_speak_of_metrics_that_exist(name: str) -> None:
    text = (CHART / "files" / "monitoring" / name).read_text()
    used = set(re.findall(r"\bkubediffusion_(?:operator|api|worker|jobs|job|workers)\w*", text))
    assert used
    assert used <= metric_names()


def test_alerts_reach_the_cluster_as_they_are_written(helm: Helm) -> None:
    rendered = pick(helm.template(EVERYTHING), "PrometheusRule", "kubediffusion")
    assert rendered["spec"]["groups"] == yaml.safe_load((CHART / "files" / "monitoring" / "alerts.yaml").read_text())


def test_the_dashboard_reaches_grafana_as_it_is_written(helm: Helm) -> None:
    rendered = pick(helm.template(EVERYTHING), "ConfigMap", "kubediffusion-dashboard")
    source = json.loads((CHART / "files" / "monitoring" / "dashboard.json").read_text())
    assert json.loads(rendered["data"]["kubediffusion.json"]) == source
