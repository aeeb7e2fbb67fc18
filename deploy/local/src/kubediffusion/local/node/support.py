"""What a process node cannot do, so that a pod that needs it fails at once and says why."""

from __future__ import annotations

from collections.abc import Iterator

from kubediffusion.local.node.objects import Container, Pod, Probe, Volume


def unsupported(pod: Pod) -> str | None:
    """Return what this node cannot do for a pod, or nothing where it can run it."""
    return next(_reasons(pod), None)


def _reasons(pod: Pod) -> Iterator[str]:
    if pod.spec.init_containers:
        yield "init containers are not supported by a process node"
    for volume in pod.spec.volumes:
        yield from _of_volume(volume)
    for container in pod.spec.containers:
        yield from (f"container {container.name}: {reason}" for reason in _of_container(container))


def _of_volume(volume: Volume) -> Iterator[str]:
    if not volume.known:
        yield f"volume {volume.name} is of a kind that a process node does not support"
    for source in volume.projected.sources if volume.projected else ():
        if source.cluster_trust_bundle or source.pod_certificate:
            yield f"volume {volume.name} projects something that a process node does not support"


def _of_container(container: Container) -> Iterator[str]:
    if not container.command:
        yield "it has no command, and a process node has no image to take one from"
    if container.lifecycle:
        yield "lifecycle hooks are not supported by a process node"
    for variable in container.env:
        source = variable.value_from
        if source and (source.resource_field_ref or source.file_key_ref):
            yield f"the source of environment variable {variable.name} is not supported by a process node"
    for mount in container.volume_mounts:
        if mount.sub_path_expr:
            yield f"the mount of volume {mount.name} uses subPathExpr, which a process node does not support"
    for kind, probe in probes_of(container):
        if not (probe.http_get or probe.tcp_socket or probe.exec):
            yield f"its {kind} probe is of a kind that a process node does not support"


def probes_of(container: Container) -> Iterator[tuple[str, Probe]]:
    """Yield a container's probes by kind."""
    for kind, probe in (
        ("startup", container.startup_probe),
        ("readiness", container.readiness_probe),
        ("liveness", container.liveness_probe),
    ):
        if probe:
            yield kind, probe
