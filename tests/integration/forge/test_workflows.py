"""The forge's workflows, which run nowhere here: actionlint reads them, and what they call is there."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from kubediffusion.local import binaries
from kubediffusion.local.layout import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yaml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def commands(content: Any) -> str:
    return "\n".join(step["run"] for job in content["jobs"].values() for step in job["steps"] if "run" in step)


def test_actionlint_finds_nothing() -> None:
    program = binaries.provide(modules=(binaries.ACTIONLINT,)).path("actionlint")
    done = subprocess.run([program, *WORKFLOWS], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_make_targets_and_name_files_that_are_there(workflow: Any) -> None:
    content = yaml.safe_load(workflow.read_text())
    called = set(re.findall(r"(?:^|\$\()make (?:--silent )?([a-z0-9-]+)", commands(content), re.MULTILINE))
    assert called
    assert called <= TARGETS
    steps = [step for job in content["jobs"].values() for step in job["steps"]]
    files = [step["with"]["go-version-file"] for step in steps if "go-version-file" in step.get("with", {})]
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []
    # Nobody else's code runs with more rights than it is given here.
    assert content["permissions"].get("contents") in {"read", "write"}
    assert all(job.get("timeout-minutes", 0) > 0 for job in content["jobs"].values())


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_python_that_the_bootstrap_looks_for_is_tried(python: str) -> None:
    matrix = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yaml").read_text())["jobs"]["test"]["strategy"][
        "matrix"
    ]
    assert python in matrix["python"]
    assert f"python{python}" in (REPOSITORY / "deploy/local/bootstrap").read_text()


def test_hooks_run_what_the_make_targets_run() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    verified = (REPOSITORY / "Makefile").read_text()
    for hook in hooks:
        program, *words = hook["entry"].split()
        if program == "make":
            assert words[-1] in TARGETS
        else:
            assert f"$(BIN)/{program.removeprefix('.venv/bin/')}" in verified
