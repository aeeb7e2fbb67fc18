"""The OpenAPI document holds, for whatever schemathesis makes of it: no request gets what it does not promise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from integration.api.api_kit import Api, serving
from integration.api.player import playing
from kubediffusion.api.schemas import EXAMPLE_MODEL
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace

NEVER_DONE = {("POST", "/v1/images/variations"), ("POST", "/sdapi/v1/interrupt")}
"""What the document has to say that it is not there."""

COMMAND = Path(sys.executable).with_name("schemathesis")


@pytest.fixture
def documented(cluster: LocalCluster, tmp_path: Path) -> Iterator[Api]:
    """An API whose jobs are done as soon as they are there."""
    namespace = Namespace(cluster, "documented")
    namespace.create()
    with serving(namespace, tmp_path) as site, playing(site.stage):
        site.stage.model(EXAMPLE_MODEL, default=False)
        yield site.start(RATE_LIMIT="", UNKNOWN_TASK_LIMIT="")
    namespace.delete()


def test_every_answer_is_as_the_document_says_and_every_operation_is_reached(documented: Api, tmp_path: Path) -> None:
    configuration = Path(__file__).with_name("schemathesis.toml")
    command: list[str | Path] = [COMMAND, "--config-file", configuration, "run", f"{documented.url}/openapi.json"]
    ran = subprocess.run(
        [*command, "--no-color", "--continue-on-failure"],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("schemathesis_hooks.py"))},
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    document = documented.http.get("/openapi.json").json()
    operations = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    statuses = _statuses(documented)
    done = {operation for operation in operations if min(statuses[operation], default="none") < "3"}
    assert operations - done == NEVER_DONE, ran.stdout
    assert {operation for operation in operations if "501" in statuses[operation]} >= NEVER_DONE


def _statuses(api: Api) -> dict[tuple[str, str], set[str]]:
    """Return the statuses that each operation has answered with."""
    found = defaultdict(set)
    for family in text_string_to_metric_families(api.http.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "kubediffusion_api_requests_total":
                found[sample.labels["method"], sample.labels["route"]].add(sample.labels["status"])
    return found
