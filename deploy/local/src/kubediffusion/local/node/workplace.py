"""A pod's folder on this machine, and what its containers find there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kubediffusion.local import kubeconfig
from kubediffusion.local.node import environment
from kubediffusion.local.node.access import Access
from kubediffusion.local.node.environment import Facts
from kubediffusion.local.node.mounts import Mounts
from kubediffusion.local.node.objects import Container, Pod
from kubediffusion.local.node.process import Launch
from kubediffusion.local.node.volumes import Volumes

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class ApiServer:
    """Where the API server answers, and the file of the authority that signed its certificate."""

    url: str
    authority: Path


class Workplace:
    """What one pod has on this machine.

    Attributes:
        facts: What the node tells it.
        volumes: Its volumes.
        logs: Where the output of its containers goes; it stays when the pod has gone.
    """

    def __init__(self, pod: Pod, folder: Path, logs: Path, facts: Facts, access: Access, server: ApiServer) -> None:
        self._pod = pod
        self._folder = folder
        self._access = access
        self._server = server
        self._mounted: dict[str, Path] = {}
        self.facts = facts
        self.logs = logs
        self.volumes = Volumes(pod, folder / "volumes", access, facts)

    async def prepare(self) -> None:
        """Make the pod's folders and volumes.

        Raises:
            ConfigurationError: Something that a volume is made of does not exist (yet).
            KubernetesError: The API server refuses or does not answer.
        """
        for folder in (self._folder, self._folder / "tmp", self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mounted = await self.volumes.make()

    def remove(self) -> None:
        """Remove the pod's folder with its volumes; not its logs."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def launch(self, container: Container, attempt: int) -> Launch:
        """Return how to run a container.

        Raises:
            ConfigurationError: Something that its environment refers to does not exist (yet).
            KubernetesError: The API server refuses or does not answer.
        """
        message = self._folder / f"{container.name}.message"
        message.write_bytes(b"")
        mounts = self.mounts(container, message)
        wanted = environment.variables(container, self._pod, self.facts, await self._contents(container))
        command = [environment.expand(word, wanted) for word in (*container.command, *container.args)]
        return Launch(
            command=[mounts.translate(word) for word in command],
            environment=self._base(container) | {name: mounts.translate(value) for name, value in wanted.items()},
            folder=Path(mounts.translate(container.working_dir)) if container.working_dir else self._folder,
            log=self.logs / log_name(container.name, attempt),
            message=message,
        )

    def mounts(self, container: Container, message: Path) -> Mounts:
        """Return the folders behind a container's mount paths, the file of its last words among them."""
        folders = {mount.mount_path: self._mounted[mount.name] / mount.sub_path for mount in container.volume_mounts}
        return Mounts({**folders, container.termination_message_path: message})

    def _base(self, container: Container) -> dict[str, str]:
        scripts = str(Path(sys.executable).parent)
        variables = {
            "PATH": f"{scripts}:{SYSTEM_PATH}",
            "HOME": str(self._folder),
            "TMPDIR": str(self._folder / "tmp"),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOSTNAME": self._pod.metadata.name,
            **self.facts.devices,
        }
        for mount in container.volume_mounts:
            if mount.mount_path == SERVICE_ACCOUNT:
                variables |= self._credentials(self._mounted[mount.name])
        return variables

    def _credentials(self, folder: Path) -> dict[str, str]:
        """Return what leads a client to the API server, as the usual path cannot be there for each pod."""
        url = urlsplit(self._server.url)
        file = kubeconfig.with_token_file(
            self._folder / "kubeconfig",
            self._server.url,
            self._server.authority,
            folder / "token",
            self._pod.metadata.namespace,
        )
        return {
            "KUBECONFIG": str(file),
            "KUBERNETES_SERVICE_HOST": str(url.hostname),
            "KUBERNETES_SERVICE_PORT": str(url.port),
            "KUBERNETES_SERVICE_PORT_HTTPS": str(url.port),
            "KUBERNETES_CA_FILE": str(folder / "ca.crt"),
        }

    async def _contents(self, container: Container) -> environment.Contents:
        contents: dict[tuple[str, str], Mapping[str, bytes]] = {}
        for source in environment.sources(container):
            found = await self._access.content(source.kind, self._pod.metadata.namespace, source.name)
            if found is None and not source.optional:
                raise environment.ConfigurationError(f'{source.kind} "{source.name}" does not exist')
            if found is not None:
                contents[source.kind, source.name] = found
        return contents


def log_name(container: str, attempt: int) -> str:
    """Return the name of the file that takes the output of one run of a container."""
    return f"{container}.{attempt}.log"
