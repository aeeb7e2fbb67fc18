"""Every suite of `make bench` runs, at a size that measures nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubediffusion.benchmarks import documents, machine
from kubediffusion.benchmarks.__main__ import SUITES, run
from kubediffusion.benchmarks.sizes import QUICK
from kubediffusion.local.cluster import LocalCluster


@pytest.mark.timeout(600)
async def test_every_suite_runs_and_is_told(cluster: LocalCluster, tmp_path: Path) -> None:
    results = await run(cluster, machine.describe(), list(SUITES), QUICK, tmp_path)
    text = documents.write(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert all(f"## {suite}\n" in text for suite in SUITES)
    page = documents.PAGE.read_text()
    assert all(documents.place(page, suite) for suite in SUITES)
