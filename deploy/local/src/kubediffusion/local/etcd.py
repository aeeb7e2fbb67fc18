"""etcd: the API server's store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kubediffusion.local.certificates import Authority, KeyPair
from kubediffusion.local.processes import Process, Program, answers
from kubediffusion.local.reservations import LOOPBACK, Reservations


@dataclass(frozen=True)
class Etcd:
    """A store, and what a client of it needs.

    Attributes:
        process: The server.
        url: Where it answers.
        authority: The file of the authority that signed its certificate.
        client: The one identity that it lets in.
    """

    process: Process
    url: str
    authority: Path
    client: KeyPair

    def flags(self) -> list[str]:
        """Return what the API server must be told."""
        return [
            f"--etcd-servers={self.url}",
            f"--etcd-cafile={self.authority}",
            f"--etcd-certfile={self.client.certificate}",
            f"--etcd-keyfile={self.client.key}",
        ]


def prepare(program: Path, data: Path, keys: Path, log: Path, reservations: Reservations) -> Etcd:
    """Return a store that is ready to be started."""
    # An authority of its own: a certificate for Kubernetes must not open the store beneath it.
    authority = Authority("etcd-ca", keys)
    server = authority.server("etcd")
    client, peer, metrics = (reservations.port() for _ in range(3))
    url, peer_url = (f"https://{LOOPBACK}:{port}" for port in (client, peer))
    metrics_url = f"http://{LOOPBACK}:{metrics}"
    command = [
        str(program),
        f"--data-dir={data}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--cert-file={server.certificate}",
        f"--key-file={server.key}",
        f"--trusted-ca-file={authority.certificate}",
        "--client-cert-auth",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
        f"--peer-cert-file={server.certificate}",
        f"--peer-key-file={server.key}",
        f"--peer-trusted-ca-file={authority.certificate}",
        "--peer-client-cert-auth",
        f"--listen-metrics-urls={metrics_url}",
        # A process that is killed loses nothing by this; only the machine's power could take the data along.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    process = Process(Program("etcd", command, log, answers(f"{metrics_url}/readyz")))
    return Etcd(process, url, authority.certificate, authority.client("kube-apiserver-etcd"))
