"""What every typed resource shares: camelCase on the wire, snake_case in Python, immutable values.

Raw dictionaries of the Kubernetes API are parsed here once, at the edge, and serialised here once on the way out.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

from kubediffusion.resources import meta


def format_time(moment: dt.datetime) -> str:
    """Write a moment as Kubernetes' MicroTime does: RFC 3339, UTC, six digits of a second."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Time = Annotated[
    AwareDatetime,
    PlainSerializer(format_time, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A moment, to the microsecond: latencies are read off status, where whole seconds would hide them."""


class Schema(BaseModel):
    """A part of a custom resource.

    Values are frozen: state changes by building a new value, so a snapshot can be shared without copying. Unknown
    fields are ignored when reading, since the API server has already refused them and a newer version may add some.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        # A value that is refused may be a prompt, and errors reach logs.
        hide_input_in_errors=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """Give the JSON object for the API server; a field without a value is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def from_wire(cls, body: Any) -> Self:
        """Parse an object of the API server.

        Raises:
            pydantic.ValidationError: The object does not have this shape.
        """
        return cls.model_validate(body)


def merge_patch(old: Any, new: Any) -> Any:
    """Give the JSON Merge Patch (RFC 7386) that turns one JSON object into the other; empty when they are equal.

    Lists are replaced whole, as the RFC has it.
    """
    patch = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif key not in old or before != value:
            patch[key] = value
    return patch


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
