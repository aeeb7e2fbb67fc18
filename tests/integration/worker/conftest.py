"""One tiny pipeline for all tests of this folder, and a bench of workers for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kubediffusion.local.testing import Namespace
from kubediffusion.resources.client import KubernetesClient

# Tests are no packages.
sys.path.insert(0, str(Path(__file__).parent))

from bench_of_workers import Bench


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion; made in a process of its own, so that torch stays out of this one."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    program = f"from pathlib import Path; from kubediffusion.worker.testing import save_stable_diffusion as save; save(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture
def bench(namespace: Namespace, client: KubernetesClient, tiny_model: Path) -> Bench:
    """A namespace with the worker's rights and storage, where jobs are bound by hand."""
    namespace.install()
    return Bench(namespace, client, tiny_model)
