"""Settings, health, processors, last words, and what may be imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kubediffusion.resources.failures import BAD_MODEL_EXIT_CODE
from kubediffusion.resources.testing import present
from kubediffusion.worker import cpus
from kubediffusion.worker.engine.request import SamplingParameters
from kubediffusion.worker.health import Health
from kubediffusion.worker.settings import Settings
from kubediffusion.worker.termination import MAX_BYTES, redact, write_termination_message
from unit.worker.worker_builders import settings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"source": {"huggingFace": {"repository": "a/b"}}, "torchDtype": "bfloat16", "workers": {"maxBatchSize": 8}}
    for name, value in {
        "POD_NAME": "p",
        "POD_NAMESPACE": "ns",
        "KUBEDIFFUSION_MODEL": "m",
        "KUBEDIFFUSION_MODEL_SPEC": json.dumps(spec),
        "KUBEDIFFUSION_S3_BUCKET": "b",
        # As a Secret that was made of a file.
        "HF_TOKEN": "hf_secret\n",
        "AWS_SECRET_ACCESS_KEY": "storage-secret",
        "AWS_SESSION_TOKEN": "session-secret",
        "AWS_ENDPOINT_URL_S3": "https://someone:endpoint-secret@storage",
        "HTTPS_PROXY": "http://someone:proxy%2Fsecret@proxy:3128",
        "http_proxy": "http://someone:other-secret@proxy:3128",
    }.items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert present(read.hf_token).get_secret_value() == "hf_secret"
    known = ["hf_secret", "storage-secret", "session-secret", "endpoint-secret", "proxy%2Fsecret", "proxy/secret"]
    assert set(known) | {"other-secret"} == set(read.secrets)
    assert (read.spec.torch_dtype, read.spec.workers.max_batch_size) == ("bfloat16", 8)
    assert (read.port, read.log_prompts) == (8080, False)
    assert "hf_secret" not in repr(read)


def test_the_environment_is_read_in_one_place() -> None:
    package = Path(cpus.__file__).parent
    # A default for what a library reads there is no reading.
    pattern = r"\benviron\b(?!\.setdefault)|\bgetenv\b"
    readers = {file.name for file in package.rglob("*.py") if re.search(pattern, file.read_text())}
    assert readers == set()


def test_a_silent_engine_is_not_alive() -> None:
    now = 0.0
    health = Health(60.0, lambda: now)
    assert (health.liveness_failure(), health.readiness_failure()) == (None, "starting")
    health.mark_ready()
    health.engine_active()
    now = 59.0
    assert (health.liveness_failure(), health.readiness_failure()) == (None, None)
    now = 61.0
    assert health.liveness_failure() == "the engine has shown no sign of life for 61 s"
    health.engine_idle()
    assert health.liveness_failure() is None


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 3), ("150000 100000", 2), ("50000 100000", 1), ("?", 3)]
)
def test_a_quota_limits_the_threads(quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr(cpus, "CPU_MAX", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert cpus.usable_cpus() == expected


def test_last_words_may_quote_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    write_termination_message(path, f"cannot read {os.fsdecode(b'unet-' + bytes([0xFF]))}")
    assert path.read_text() == "cannot read unet-?"


def test_last_words_hold_no_secret_and_fit(tmp_path: Path) -> None:
    told = settings(tmp_path).model_copy(update={"hf_token": Settings.model_fields["hf_token"].default})
    assert redact("token abc", told) == "token abc"
    told = Settings(**{**settings(tmp_path).model_dump(), "hf_token": "abc"})
    assert redact("token abc", told) == "token ***"
    path = tmp_path / "log"
    write_termination_message(path, "ä" * MAX_BYTES)
    assert path.read_text() == "ä" * (MAX_BYTES // 2)


def test_every_credential_of_the_hub_is_a_secret(tmp_path: Path) -> None:
    """The library reads an older variable too, and the address of a mirror may hold a password."""
    told = Settings(
        **settings(tmp_path).model_dump()
        | {
            "hf_token": "hf_one\n",
            "old_hf_token": "hf_two\n",
            "hf_endpoint": "https://me:pass%2Fword@mirror.example.com",
        }
    )
    assert {"hf_one", "hf_two", "pass%2Fword", "pass/word"} <= set(told.secrets)


def test_a_worker_s_log_holds_no_secret(tmp_path: Path) -> None:
    """A path that is also the token: whatever an error quotes, it comes out as neither message nor log."""
    reason = tmp_path / "termination-log"
    # The worker tells the API server how far its start is; one that is away is no reason to end.
    cluster = {"name": "away", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "away", "context": {"cluster": "away", "user": "nobody"}}
    config = {
        "clusters": [cluster],
        "contexts": [context],
        "current-context": "away",
        "users": [{"name": "nobody", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    environment = {
        "KUBECONFIG": str(tmp_path / "kubeconfig"),
        "POD_NAME": "p",
        "POD_NAMESPACE": "ns",
        "KUBEDIFFUSION_MODEL": "m",
        "KUBEDIFFUSION_MODEL_SPEC": json.dumps({"source": {"path": "/nowhere/hf_secret"}}),
        "KUBEDIFFUSION_S3_BUCKET": "b",
        "KUBEDIFFUSION_BIND_ADDRESS": "127.0.0.1",
        "KUBEDIFFUSION_PORT": "0",
        "KUBEDIFFUSION_TERMINATION_LOG": str(reason),
        "HF_TOKEN": "hf_secret",
    }
    command = [str(Path(sys.executable).with_name("kubediffusion-worker"))]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == BAD_MODEL_EXIT_CODE
    assert "/nowhere/***" in ended.stderr
    assert "/nowhere/***" in reason.read_text()
    assert "hf_secret" not in ended.stdout + ended.stderr + reason.read_text()


def test_only_what_computes_and_what_loads_needs_torch() -> None:
    program = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "diffusers", "transformers", "accelerate"}:
            raise ImportError("no torch here")
sys.meta_path.insert(0, Refuse())
import kubediffusion.worker as worker
for module in pkgutil.walk_packages(worker.__path__, "kubediffusion.worker."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        assert str(error) == "no torch here", module.name
        print(module.name.split(".")[2])
    else:
        print("without", module.name.split(".")[2])
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True)
    found = set(done.stdout.splitlines())
    rooms = {"execution", "families", "loading", "transfers"}
    assert {room for room in found if not room.startswith("without")} == rooms
    assert {"without main", "without engine", "without runner"} <= found


def test_a_batch_is_logged_by_the_word_that_readers_of_logs_know() -> None:
    logged = str(SamplingParameters(steps=4, guidance=2.0, width=64))
    assert logged.startswith("Shape(steps=4, guidance=2.0, width=64, height=None")
