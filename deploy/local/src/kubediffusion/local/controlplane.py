"""Kubernetes' control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler, as they are.

Each can be killed and started again: ports, data and certificates stay. Who may do what is decided as in any cluster
(RBAC, the Node authorizer, NodeRestriction); nothing here weakens it for convenience.
"""

from __future__ import annotations

from pathlib import Path

from kubediffusion.local import certificates, etcd, kubeconfig
from kubediffusion.local.binaries import Binaries
from kubediffusion.local.certificates import Authority, KeyPair
from kubediffusion.local.etcd import Etcd
from kubediffusion.local.processes import Process, Program, answers
from kubediffusion.local.reservations import LOOPBACK, Reservations
from kubediffusion.local.rest import Rest

ISSUER = "https://kubernetes.default.svc"
SERVICE_RANGE = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
"""Of the service "kubernetes": the first of the range."""
ADMINISTRATOR = "kubernetes-admin"
ADMINISTRATORS = "system:masters"


class ControlPlane:
    """A control plane under a folder of its own.

    Attributes:
        url: Where the API server answers.
        authority: The file of the authority that signed its certificate.
        admin: The kubeconfig of an administrator.
        rest: The API server, for an administrator.
    """

    def __init__(self, folder: Path, binaries: Binaries, reservations: Reservations, address: str = LOOPBACK) -> None:
        """Prepare it; nothing runs yet.

        Args:
            folder: Where its data, keys and logs lie.
            binaries: Its programs.
            reservations: Where its ports come from.
            address: Where the API server listens. One that is no loopback address is published as the endpoint of the
                service "kubernetes", as pods with a network of their own need it.
        """
        self._address = address
        self._folder = folder
        self._binaries = binaries
        self._keys = _folder(folder / "certificates")
        self._logs = _folder(folder / "logs")
        self._kubeconfigs = _folder(folder / "kubeconfigs")
        self._authority = Authority("kubernetes-ca", self._keys)
        self.authority = self._authority.certificate
        self._server = self._authority.server("kubernetes", address, SERVICE_ADDRESS)
        self._port = reservations.port()
        self.url = f"https://{address}:{self._port}"
        self._tokens = certificates.signing_key(self._keys)
        store = etcd.prepare(binaries.path("etcd"), folder / "etcd", self._keys, self._logs / "etcd.log", reservations)
        self.etcd = store.process
        self.apiserver = self._apiserver(store)
        self.admin = self.kubeconfig(ADMINISTRATOR, (ADMINISTRATORS,))
        self.rest = Rest(self.url, self.authority, self._authority.client(ADMINISTRATOR, (ADMINISTRATORS,)))
        self.controller_manager = self._controller_manager(reservations)
        self.scheduler = self._scheduler(reservations)

    @property
    def processes(self) -> tuple[Process, ...]:
        """Its processes, in the order in which they start."""
        return (self.etcd, self.apiserver, self.controller_manager, self.scheduler)

    def start(self) -> None:
        """Start all of it; when this returns, the API server serves."""
        for process in (self.etcd, self.apiserver):
            process.start()
            process.wait_ready()
        for process in (self.controller_manager, self.scheduler):
            process.start()

    def wait_ready(self) -> None:
        """Wait until each part serves."""
        for process in self.processes:
            process.wait_ready()

    def stop(self) -> None:
        """Stop all of it, in reverse order: an API server without its store takes its time to give up."""
        for process in reversed(self.processes):
            process.stop()

    def kubeconfig(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Make a user, who may do what RBAC lets a user of that name and those groups do."""
        path = self._kubeconfigs / f"{user.replace(':', '-')}.yaml"
        return kubeconfig.with_certificate(path, self.url, self.authority, self._authority.client(user, groups))

    def server_certificate(self, name: str, *addresses: str) -> KeyPair:
        """Issue a certificate for a server that the API server talks to."""
        return self._authority.server(name, *addresses)

    def _apiserver(self, store: Etcd) -> Process:
        to_nodes = self._authority.client("kube-apiserver-kubelet-client", (ADMINISTRATORS,))
        return self._process(
            "kube-apiserver",
            [
                f"--bind-address={self._address}",
                f"--secure-port={self._port}",
                f"--advertise-address={self._address}",
                # Publishing a loopback address as the endpoint of the service "kubernetes" is refused; pods are
                # told the address by the node.
                *(["--endpoint-reconciler-type=none"] if self._address == LOOPBACK else []),
                f"--service-cluster-ip-range={SERVICE_RANGE}",
                f"--cert-dir={self._keys}",
                f"--tls-cert-file={self._server.certificate}",
                f"--tls-private-key-file={self._server.key}",
                f"--client-ca-file={self.authority}",
                *store.flags(),
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                f"--service-account-issuer={ISSUER}",
                f"--service-account-key-file={self._tokens.certificate}",
                f"--service-account-signing-key-file={self._tokens.key}",
                f"--kubelet-certificate-authority={self.authority}",
                f"--kubelet-client-certificate={to_nodes.certificate}",
                f"--kubelet-client-key={to_nodes.key}",
                "--kubelet-preferred-address-types=InternalIP",
            ],
            health=f"{self.url}/readyz",
        )

    def _controller_manager(self, reservations: Reservations) -> Process:
        port = reservations.port()
        return self._process(
            "kube-controller-manager",
            [
                *self._follower("kube-controller-manager", port),
                "--use-service-account-credentials",
                # A quota over a kind that was defined a moment ago is counted at the next round, not minutes later.
                "--resource-quota-sync-period=10s",
                f"--service-account-private-key-file={self._tokens.key}",
                f"--root-ca-file={self.authority}",
            ],
            health=f"https://{LOOPBACK}:{port}/healthz",
        )

    def _scheduler(self, reservations: Reservations) -> Process:
        port = reservations.port()
        return self._process(
            "kube-scheduler", self._follower("kube-scheduler", port), health=f"https://{LOOPBACK}:{port}/readyz"
        )

    def _follower(self, name: str, port: int) -> list[str]:
        identity = self.kubeconfig(f"system:{name}")
        return [
            f"--kubeconfig={identity}",
            f"--authentication-kubeconfig={identity}",
            f"--authorization-kubeconfig={identity}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={port}",
            f"--tls-cert-file={self._server.certificate}",
            f"--tls-private-key-file={self._server.key}",
            # There is one of each; an election would only delay a restart.
            "--leader-elect=false",
        ]

    def _process(self, name: str, arguments: list[str], *, health: str) -> Process:
        return Process(
            Program(
                name=name,
                command=[str(self._binaries.path(name)), *arguments],
                log=self._logs / f"{name}.log",
                healthy=answers(health, self.authority),
            )
        )


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
