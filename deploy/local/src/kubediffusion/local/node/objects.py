"""Pods, as far as this node reads them. Everything else in a manifest is the API server's business."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from kubediffusion.resources.objects import KubernetesObject
from kubediffusion.resources.schema import Schema, Time

GPU = "nvidia.com/gpu"


class KeyReference(Schema):
    """One key of a Secret or ConfigMap."""

    name: str = ""
    key: str
    optional: bool = False


class NameReference(Schema):
    """A whole Secret or ConfigMap."""

    name: str = ""
    optional: bool = False


class FieldReference(Schema):
    """A field of the pod itself, as in ``metadata.name``."""

    field_path: str


class ValueSource(Schema):
    """Where an environment variable's value comes from."""

    field_ref: FieldReference | None = None
    secret_key_ref: KeyReference | None = None
    config_map_key_ref: KeyReference | None = None
    resource_field_ref: Any = None
    file_key_ref: Any = None


class Variable(Schema):
    """An environment variable."""

    name: str
    value: str = ""
    value_from: ValueSource | None = None


class VariablesSource(Schema):
    """A Secret or ConfigMap whose keys all become environment variables."""

    prefix: str = ""
    secret_ref: NameReference | None = None
    config_map_ref: NameReference | None = None


class VolumeMount(Schema):
    """A volume's place in a container."""

    name: str
    mount_path: str
    sub_path: str = ""
    sub_path_expr: str = ""


class Header(Schema):
    """A header of an HTTP probe."""

    name: str
    value: str


class HTTPGet(Schema):
    """A probe that passes on a status from 200 to 399."""

    port: int | str
    path: str = "/"
    host: str = ""
    scheme: str = "HTTP"
    http_headers: tuple[Header, ...] = ()


class TCPSocket(Schema):
    """A probe that passes when a connection opens."""

    port: int | str
    host: str = ""


class Exec(Schema):
    """A probe that passes when a command exits with 0."""

    command: tuple[str, ...] = ()


class Probe(Schema):
    """A question that is asked of a container again and again."""

    http_get: HTTPGet | None = None
    tcp_socket: TCPSocket | None = None
    exec: Exec | None = None
    grpc: Any = None
    initial_delay_seconds: int = 0
    period_seconds: int = 10
    timeout_seconds: int = 1
    success_threshold: int = 1
    failure_threshold: int = 3


class Port(Schema):
    """A port that a container names."""

    container_port: int
    name: str = ""


class Resources(Schema):
    """What a container may use; only devices bind a process."""

    limits: dict[str, str] = Field(default_factory=dict)


class Container(Schema):
    """A container of a pod."""

    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[Variable, ...] = ()
    env_from: tuple[VariablesSource, ...] = ()
    ports: tuple[Port, ...] = ()
    volume_mounts: tuple[VolumeMount, ...] = ()
    resources: Resources = Resources()
    startup_probe: Probe | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    termination_message_path: str = "/dev/termination-log"
    termination_message_policy: str = "File"
    lifecycle: Any = None

    @property
    def gpus(self) -> int:
        """How many GPUs it asks for."""
        return int(self.resources.limits.get(GPU, "0"))


class KeyToPath(Schema):
    """A key of a Secret or ConfigMap and the file that it becomes."""

    key: str
    path: str


class SecretFiles(Schema):
    """A Secret as files; a pod's volume calls it ``secretName`` and a projection ``name``."""

    secret_name: str = ""
    name: str = ""
    items: tuple[KeyToPath, ...] = ()
    optional: bool = False


class ConfigMapFiles(Schema):
    """A ConfigMap as files."""

    name: str = ""
    items: tuple[KeyToPath, ...] = ()
    optional: bool = False


class FieldFile(Schema):
    """A field of the pod as a file."""

    path: str
    field_ref: FieldReference | None = None
    resource_field_ref: Any = None


class FieldFiles(Schema):
    """Fields of the pod as files."""

    items: tuple[FieldFile, ...] = ()


class TokenFile(Schema):
    """A service account token, bound to the pod, as a file that is renewed."""

    path: str
    audience: str = ""
    expiration_seconds: int = 3600


class Projection(Schema):
    """One of the sources of a projected volume."""

    secret: SecretFiles | None = None
    config_map: ConfigMapFiles | None = None
    downward_api: FieldFiles | None = None
    service_account_token: TokenFile | None = None
    cluster_trust_bundle: Any = None
    pod_certificate: Any = None


class Projected(Schema):
    """A volume made of several sources."""

    sources: tuple[Projection, ...] = ()


class HostPath(Schema):
    """A path of this machine."""

    path: str
    type: str = ""


class ClaimReference(Schema):
    """A PersistentVolumeClaim."""

    claim_name: str


class Volume(Schema):
    """A volume of a pod; exactly one kind is set, or none that this node knows."""

    name: str
    empty_dir: dict[str, Any] | None = None
    secret: SecretFiles | None = None
    config_map: ConfigMapFiles | None = None
    downward_api: FieldFiles | None = None
    host_path: HostPath | None = None
    projected: Projected | None = None
    persistent_volume_claim: ClaimReference | None = None

    @property
    def known(self) -> bool:
        """Whether this node can make it."""
        return any(value is not None for key, value in self if key != "name")


class PodSpec(Schema):
    """What a pod is to be."""

    containers: tuple[Container, ...]
    init_containers: tuple[Any, ...] = ()
    volumes: tuple[Volume, ...] = ()
    restart_policy: str = "Always"
    active_deadline_seconds: int | None = None
    termination_grace_period_seconds: int = 30
    host_network: bool = False
    node_name: str = ""
    service_account_name: str = "default"


class RunningState(Schema):
    """The state of a container that runs."""

    started_at: Time | None = None


class TerminatedState(Schema):
    """The state of a container that ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    started_at: Time | None = None
    finished_at: Time | None = None
    container_id: str = Field(default="", alias="containerID")


class ContainerState(Schema):
    """A container's state; waiting where neither is set."""

    running: RunningState | None = None
    terminated: TerminatedState | None = None


class ContainerStatus(Schema):
    """What was reported of a container."""

    name: str
    restart_count: int = 0
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodStatus(Schema):
    """What was reported of a pod."""

    phase: str = ""
    start_time: Time | None = None
    container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(KubernetesObject):
    """A pod bound to this node."""

    spec: PodSpec
    status: PodStatus = PodStatus()

    @property
    def finished(self) -> bool:
        """Whether it has reached a phase that it never leaves."""
        return self.status.phase in {"Succeeded", "Failed"}

    @property
    def gpus(self) -> int:
        """How many GPUs its containers ask for."""
        return sum(container.gpus for container in self.spec.containers)

    def __str__(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"
