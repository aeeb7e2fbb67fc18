"""What `make up` tells a person: the way in by each door, in words that can be pasted."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import yaml

from kubediffusion.local.main import usage
from kubediffusion.local.service import Service
from kubediffusion.resources.generation_job import GenerationJob

SUBMIT = """curl -X POST "http://localhost:8000/generate" -H "Content-Type: application/json" \
-d '{"prompt": "A photo of an astronaut riding a horse on the moon", "num_inference_steps": 25, \
"guidance_scale": 9.0}'"""
POLL = 'curl -X GET "http://localhost:8000/results/<task_id>"'


def text() -> str:
    cluster = SimpleNamespace(admin=Path("/run/admin.yaml"))
    service = SimpleNamespace(url="http://localhost:8000", cluster=cluster, kubectl=Path("/bin/here/kubectl"))
    return usage(cast(Service, service))


def test_the_readme_s_commands_are_told_word_by_word() -> None:
    lines = re.sub(r"\\\n\s*", "", text()).splitlines()
    commands = [line.strip() for line in lines if line.strip().startswith("curl")]
    assert commands == [SUBMIT, POLL]
    assert json.loads(shlex.split(commands[0])[-1])["num_inference_steps"] == 25


def test_kubectl_is_told_where_the_cluster_is_and_what_a_job_looks_like() -> None:
    assert "export KUBECONFIG=/run/admin.yaml" in text()
    assert "export PATH=/bin/here:$PATH" in text()
    manifest = re.search(r"<<EOF\n(.*?)EOF\n", text(), re.DOTALL)
    assert manifest is not None
    job = GenerationJob.from_wire(yaml.safe_load(manifest[1]))
    assert job.spec.prompt == "A photo of an astronaut riding a horse on the moon"


def test_it_says_that_anybody_may_use_it_and_how_to_stop_it() -> None:
    assert "API keys are off" in text()
    assert "Ctrl-C" in text()
    assert "http://localhost:8000/docs" in text()
