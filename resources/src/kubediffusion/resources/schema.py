"""What every part of a resource shares: camelCase on the wire, snake_case in Python, immutable values.

Raw dictionaries of the Kubernetes API are parsed here once, at the edge, and serialised here once on the way out.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel


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
        """Serialise to the JSON object that the API server takes, without the fields that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def from_wire(cls, body: Any) -> Self:
        """Parse an object of the API server.

        Raises:
            pydantic.ValidationError: The object does not have this shape.
        """
        return cls.model_validate(body)
