"""One studio for the tests of this folder that leave its model alone; more for those that do not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import Namespace, connect
from kubediffusion.resources.client import KubernetesClient

# Tests are no packages.
sys.path.insert(0, str(Path(__file__).parent))

from studio import Studio, tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion; made in a process of its own, so that torch stays out of this one."""
    folder = tmp_path_factory.mktemp("system") / "tiny"
    program = (
        "import sys; from pathlib import Path; from kubediffusion.worker.testing import save_stable_diffusion as save; "
    )
    command = [sys.executable, "-c", program + "save(Path(sys.argv[1]))", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture(scope="session")
def installed(cluster: LocalCluster, tiny_folder: Path) -> Iterator[Namespace]:
    """A namespace with operator, API, and a model that has one warm worker."""
    namespace = Namespace(cluster, "studio")
    namespace.create()
    namespace.install(installation.operator(namespace.name), installation.api(namespace.name), tiny_model(tiny_folder))
    yield namespace
    namespace.delete()


@pytest.fixture
async def studio(installed: Namespace, cluster: LocalCluster) -> AsyncIterator[Studio]:
    """The shared studio; its jobs are deleted after each test."""
    async with await connect(cluster.admin) as client:
        shared = Studio(installed, client)
        shared.ready_pods("kubediffusion-operator", 1)
        shared.ready_pods("tiny", 1)
        yield shared
        await shared.clear()


@pytest.fixture
def open_studio(namespace: Namespace, client: KubernetesClient, tiny_folder: Path) -> Iterator[Callable[..., Studio]]:
    """Opens a studio of the test's own: with settings of the operator, and of the model's workers."""
    with ExitStack() as stack:

        def open_it(operator: dict[str, str] | None = None, *, folder: Path = tiny_folder, **workers: object) -> Studio:
            namespace.install(
                installation.operator(namespace.name, operator),
                installation.api(namespace.name),
                tiny_model(folder, **workers),
            )
            # Nothing runs on that later tests would share the processors with.
            stack.callback(namespace.kubectl, "delete", "deployments,diffusionmodels", "--all")
            opened = Studio(namespace, client)
            opened.ready_pods("kubediffusion-operator", 1)
            return opened

        yield open_it
