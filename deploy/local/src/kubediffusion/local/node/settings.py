"""How a process node is told what to be: by its command line, so that ``ps`` shows it.

Who it is, it learns as every client does: from KUBECONFIG.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kubediffusion.local.node import devices
from kubediffusion.local.node.registration import Capacity, machine_memory
from kubediffusion.local.node.restarts import CrashBackoff

DEFAULT_PODS = 110


@dataclass(frozen=True)
class NodeSettings:
    """What a process node is told.

    Attributes:
        name: Its name in the cluster.
        authority: The file of the authority that signed the API server's certificate.
        server: Where the API server answers, for its pods.
        network: The first two bytes of its pods' addresses.
        folder: Where its pods have their folders.
        logs: Where their output goes.
        port: Where it serves their output.
        certificate: The server certificate for that.
        key: The key of that certificate.
        gpus: How many GPUs it has; as many as the machine where that is None.
        cpu: Its processors, as a quantity.
        memory: Its memory, as a quantity.
        backoff: How long a crashed container waits.
    """

    name: str
    authority: Path
    server: str
    network: str
    folder: Path
    logs: Path
    port: int
    certificate: Path
    key: Path
    gpus: int | None = None
    cpu: str = str(os.cpu_count() or 1)
    memory: str = ""
    backoff: CrashBackoff = field(default_factory=CrashBackoff)

    def arguments(self) -> list[str]:
        """Return the command line that says the same."""
        options = {
            "name": self.name,
            "authority": self.authority,
            "server": self.server,
            "network": self.network,
            "folder": self.folder,
            "logs": self.logs,
            "port": self.port,
            "certificate": self.certificate,
            "key": self.key,
            "gpus": self.gpus,
            "cpu": self.cpu,
            "memory": self.memory or None,
            "backoff-initial": self.backoff.initial,
            "backoff-limit": self.backoff.limit,
        }
        return [f"--{option}={value}" for option, value in options.items() if value is not None]

    def make_devices(self) -> devices.Devices:
        """Return the GPUs that it has. More than the machine's are simulated, all of them."""
        real = devices.count_gpus()
        count = real if self.gpus is None else self.gpus
        return devices.Devices(count, simulated=count > real)

    def capacity(self, gpus: int) -> Capacity:
        """Return what the scheduler may count on."""
        return Capacity(self.cpu, self.memory or machine_memory(), DEFAULT_PODS, gpus)


def parse(arguments: Sequence[str]) -> NodeSettings:
    """Return what a command line says."""
    parser = argparse.ArgumentParser(prog="process-node", description="A Kubernetes node that runs processes.")
    for option in ("name", "server", "network"):
        parser.add_argument(f"--{option}", required=True)
    for option in ("authority", "folder", "logs", "certificate", "key"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gpus", type=int)
    parser.add_argument("--cpu", default=NodeSettings.cpu)
    parser.add_argument("--memory", default="")
    parser.add_argument("--backoff-initial", type=float, default=CrashBackoff.initial)
    parser.add_argument("--backoff-limit", type=float, default=CrashBackoff.limit)
    values = vars(parser.parse_args(arguments))
    backoff = CrashBackoff(initial=values.pop("backoff_initial"), limit=values.pop("backoff_limit"))
    return NodeSettings(backoff=backoff, **values)
