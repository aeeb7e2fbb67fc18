"""A real node: containerd, kubelet and kube-proxy, with cluster DNS beside them, as processes of this namespace."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2e.e2e_images import PARTS, PAUSE, identity, name
from kubediffusion.local.binaries import Binaries
from kubediffusion.local.controlplane import ControlPlane
from kubediffusion.local.processes import Process, Program, answers

ADDRESS = "10.211.0.1"
"""Of the node: tests/e2e/inside gives it to this network namespace."""

PODS = "10.212.0.0/24"
DNS = "10.96.0.10"
NAME = "node"
GPU = "nvidia.com/gpu"
CONTAINERS = "k8s.io"
"""containerd's own namespace for what kubelet runs."""


class Containerd:
    """The container runtime, which keeps unpacked images from one run to the next."""

    def __init__(self, folder: Path, store: Path, logs: Path) -> None:
        self.socket = folder / "containerd.sock"
        network = folder / "cni"
        network.mkdir(parents=True)
        # A link for each pod, routed by the host: its packets pass the filter even between pods of one node.
        plugin = {
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": str(folder / "addresses"),
                "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        configuration = {"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin]}
        (network / "10-pods.conflist").write_text(json.dumps(configuration))
        file = folder / "containerd.toml"
        file.write_text(
            f"""\
version = 2
root = "{store}"
state = "{folder}/state"
[grpc]
address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
# In a sandbox that may not lower it below its own.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{network}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""
        )
        self.process = Process(
            Program("containerd", ["containerd", f"--config={file}"], logs / "containerd.log", self._healthy, path())
        )

    def ctr(self, *arguments: str) -> str:
        """Run containerd's own client."""
        command = ["ctr", f"--address={self.socket}", f"--namespace={CONTAINERS}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def clear(self) -> None:
        """Remove what an interrupted run has left: containers, and with them their writable layers."""
        for container in self.ctr("containers", "list", "--quiet").split():
            self.ctr("containers", "delete", container)

    def load(self, tags: tuple[str, ...]) -> None:
        """Bring the images in that are not there yet, under each of some tags."""
        wanted = {PAUSE: (PAUSE,)} | {name(part): tuple(name(part, tag) for tag in tags) for part in PARTS}
        for image, names in wanted.items():
            number = identity(image).removeprefix("sha256:")
            loaded = f"{image.rsplit(':', 1)[0]}-id:{number[:16]}"
            if loaded not in self.ctr("images", "list", "--quiet").split():
                self._import(image, loaded)
            for target in names:
                self.ctr("images", "tag", "--force", loaded, target)
            self._forget_others(loaded, number)

    def _import(self, image: str, loaded: str) -> None:
        """Import an image; layers that are unpacked already are not unpacked again."""
        # An import that was interrupted leaves a name too, but not this one: it is given when all is unpacked.
        arriving = loaded.replace("-id:", "-arriving:")
        push = ["buildah", "push", "--quiet", image, f"docker-archive:/dev/stdout:{arriving}"]
        ctr = ["ctr", f"--address={self.socket}", f"--namespace={CONTAINERS}", "images", "import", "-"]
        with subprocess.Popen(push, stdout=subprocess.PIPE) as process:
            subprocess.run(ctr, stdin=process.stdout, capture_output=True, check=True)
        if process.returncode != 0:
            raise RuntimeError(f"buildah does not hand {image} over")
        # Packed layers have served once they are unpacked, and take as much disk again.
        for layer in self._layers(arriving):
            self.ctr("content", "delete", layer)
        self.ctr("images", "tag", arriving, loaded)
        self.ctr("images", "delete", arriving)

    def _layers(self, image: str) -> set[str]:
        """Return the digests of an image's packed layers."""
        _, (_, _, manifest, *_) = map(str.split, self.ctr("images", "list", f"name=={image}").splitlines())
        return {layer["digest"] for layer in json.loads(self.ctr("content", "get", manifest))["layers"]}

    def _forget_others(self, loaded: str, number: str) -> None:
        """Forget former builds of an image, and let their layers go."""
        base = loaded.rsplit(":", 1)[0]
        for known in self.ctr("images", "list", "--quiet").split():
            if known.startswith(f"{base}:") and known != loaded:
                self.ctr("images", "delete", known)
        current = {identity(image).removeprefix("sha256:") for image in (PAUSE, *map(name, PARTS))} | {number}
        for known in self.ctr("images", "list", "--quiet").split():
            if known.startswith("sha256:") and known.removeprefix("sha256:") not in current:
                self.ctr("images", "delete", "--sync", known)

    def _healthy(self) -> bool:
        command = ["ctr", f"--address={self.socket}", "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Node:
    """What makes this machine a node of a cluster."""

    def __init__(self, folder: Path, store: Path, plane: ControlPlane, binaries: Binaries) -> None:
        folder.mkdir(parents=True)
        logs = folder.parent / "logs"
        self._folder, self._plane, self._binaries, self._logs = folder, plane, binaries, logs
        self.containerd = Containerd(folder, store, logs)
        self.kubelet = self._kubelet()
        self.proxy = self._proxy()
        self.dns = self._dns()

    @property
    def processes(self) -> tuple[Process, ...]:
        """Its processes, in the order in which they start."""
        return (self.containerd.process, self.dns, self.proxy, self.kubelet)

    def start(self, tags: tuple[str, ...]) -> None:
        """Start all of it; images come first, so that no pod waits for one."""
        self.containerd.process.start()
        self.containerd.process.wait_ready()
        self.containerd.clear()
        self.containerd.load(tags)
        for process in self.processes[1:]:
            process.start()
        for process in self.processes[1:]:
            process.wait_ready()

    def stop(self) -> None:
        """Stop all of it; what containers are left go with their namespace."""
        for process in reversed(self.processes):
            process.stop()

    def _kubelet(self) -> Process:
        resolver = self._folder / "resolv.conf"
        resolver.write_text("")
        certificate = self._plane.server_certificate(NAME, ADDRESS)
        return self._kubernetes(
            "kubelet",
            {
                "apiVersion": "kubelet.config.k8s.io/v1beta1",
                "kind": "KubeletConfiguration",
                "address": ADDRESS,
                "authentication": {
                    "anonymous": {"enabled": False},
                    "webhook": {"enabled": True},
                    "x509": {"clientCAFile": str(self._plane.authority)},
                },
                "authorization": {"mode": "Webhook"},
                "tlsCertFile": str(certificate.certificate),
                "tlsPrivateKeyFile": str(certificate.key),
                "containerRuntimeEndpoint": f"unix://{self.containerd.socket}",
                "cgroupDriver": "cgroupfs",
                # Machines with control groups of version 1 are machines too, as long as kubelet knows them.
                "failCgroupV1": False,
                "failSwapOn": False,
                "clusterDNS": [DNS],
                "clusterDomain": "cluster.local",
                "resolvConf": str(resolver),
                "volumePluginDir": str(self._folder / "plugins"),
                # The disk is the machine's, not the tests': a full one must fail loudly, not evict.
                "evictionHard": dict.fromkeys(
                    ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"), "0%"
                ),
                "imageGCHighThresholdPercent": 100,
            },
            [f"--hostname-override={NAME}", f"--node-ip={ADDRESS}", f"--root-dir={self._folder / 'kubelet'}"],
            user=f"system:node:{NAME}",
            groups=("system:nodes",),
            health="http://127.0.0.1:10248/healthz",
        )

    def _proxy(self) -> Process:
        identity = self._plane.kubeconfig("system:kube-proxy")
        return self._kubernetes(
            "kube-proxy",
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": "iptables",
                "clientConnection": {"kubeconfig": str(identity)},
                "conntrack": {"maxPerCore": 0, "min": 0},
                "healthzBindAddress": "127.0.0.1:10256",
                "metricsBindAddress": "127.0.0.1:10249",
            },
            [f"--hostname-override={NAME}"],
            health="http://127.0.0.1:10249/healthz",
        )

    def _dns(self) -> Process:
        identity = self._plane.kubeconfig("coredns")
        file = self._folder / "Corefile"
        file.write_text(
            f"""\
.:53 {{
    bind {ADDRESS}
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local {{
        kubeconfig {identity}
    }}
}}
"""
        )
        command = [str(self._binaries.path("coredns")), f"-conf={file}"]
        return Process(
            Program("CoreDNS", command, self._logs / "coredns.log", answers("http://127.0.0.1:8181/ready"), path())
        )

    def _kubernetes(
        self,
        program: str,
        configuration: Mapping[str, Any],
        arguments: list[str],
        *,
        health: str,
        user: str | None = None,
        groups: tuple[str, ...] = (),
    ) -> Process:
        file = self._folder / f"{program}.json"
        file.write_text(json.dumps(configuration))
        command = [str(self._binaries.path(program)), f"--config={file}", *arguments]
        if user:
            command.append(f"--kubeconfig={self._plane.kubeconfig(user, groups)}")
        return Process(Program(program, command, self._logs / f"{program}.log", answers(health), path()))


def path() -> dict[str, str]:
    """The environment of programs that call others: iptables, mount, runc."""
    return {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
