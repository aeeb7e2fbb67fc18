"""A namespace of its own for each test, and an administrator's client."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace, connect
from kubediffusion.resources.apiserver.client import KubernetesClient

numbers = itertools.count(1)


@pytest.fixture
def namespace(cluster: LocalCluster) -> Iterator[Namespace]:
    """A fresh namespace."""
    fresh = Namespace(cluster, f"test-{next(numbers)}")
    fresh.create()
    yield fresh
    fresh.delete()


@pytest.fixture
async def client(cluster: LocalCluster) -> AsyncIterator[KubernetesClient]:
    """A client with the rights of an administrator."""
    async with await connect(cluster.admin) as administrator:
        yield administrator


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion; made in a process of its own, so that torch stays out of this one."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    program = "import pathlib, sys; from kubediffusion.worker import testing; "
    program += "testing.save_stable_diffusion(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True, timeout=120)
    return folder
