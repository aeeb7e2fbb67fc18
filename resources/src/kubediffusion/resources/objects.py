"""The envelope of an object of the Kubernetes API: its metadata, and the spec and status of the project's own kinds."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from kubediffusion.resources import meta
from kubediffusion.resources.schema import Schema, Time


class OwnerReference(Schema):
    """The object that this one belongs to (``metadata.ownerReferences``)."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(Schema):
    """The part of ``metadata`` that the project reads or writes."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def version(self) -> int:
        """The resource version as a number: of two states of an object, the higher is the newer.

        https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions
        """
        return int(self.resource_version or 0)


class KubernetesObject(Schema):
    """An object of the Kubernetes API: what has a name and a uid."""

    metadata: ObjectMeta = ObjectMeta()

    @property
    def name(self) -> str:
        """The name, unique among the objects of its kind in its namespace."""
        return self.metadata.name

    @property
    def uid(self) -> str:
        """The identity: another object of the same name has another one."""
        return self.metadata.uid


Spec = TypeVar("Spec", bound=Schema)
Status = TypeVar("Status", bound=Schema)


class CustomResource(KubernetesObject, Generic[Spec, Status]):
    """The envelope of the project's own kinds: what is asked for, and what is so."""

    KIND: ClassVar[str]
    PLURAL: ClassVar[str]

    api_version: str = meta.API_VERSION
    kind: str
    spec: Spec
    status: Status
