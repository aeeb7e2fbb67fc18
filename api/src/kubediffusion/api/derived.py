"""Derives the HTTP API's models from the typed resources, so that a new field of a resource is one edit.

A resource is camelCase on the wire and holds Kubernetes' own schema extensions; a client of the HTTP API sends and
reads snake_case. The class that a decorator is put on says what differs: its docstring, its base class, its validators.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import copy
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationInfo, create_model, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from kubediffusion.resources.schema import Schema

Model = TypeVar("Model", bound=BaseModel)
Parts = Mapping[type[Schema], type[BaseModel]]
"""Which derived model stands for which part of a resource."""

Documented = Mapping[str, FieldInfo]
"""Descriptions and examples of fields, for clients."""


class StrictNumbers(BaseModel):
    """A request in which a boolean is no number, and a number no boolean."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_for_a_boolean(cls, value: object, info: ValidationInfo) -> object:
        """Refuse booleans for numbers, and numbers for booleans: pydantic takes them, and the document does not."""
        if isinstance(value, bool | int | float) and info.field_name is not None:
            types = set(_types_in(cls.model_fields[info.field_name].annotation))
            if isinstance(value, bool) and types & {int, float} and bool not in types:
                raise PydanticCustomError("number_type", "Input should be a number, not true or false")
            if not isinstance(value, bool) and bool in types and not types & {int, float}:
                raise PydanticCustomError("bool_type", "Input should be true or false, not a number")
        return value


class RequestModel(StrictNumbers):
    """A request. An unknown field is an error, since a mistyped one would be silently without effect."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, from_attributes=True)


class ResponseModel(BaseModel):
    """A response, or a part of one. It can be built from the part of a resource that it was derived from."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True, protected_namespaces=())


def described(description: str, example: object = None, default: object = None) -> FieldInfo:
    """Describe a request's field; ``default`` applies where the client and the model leave the field unset."""
    return FieldInfo(
        description=description,
        examples=None if example is None else [example],
        json_schema_extra=None if default is None else {"default": default},  # type: ignore[dict-item] # JSON
    )


def request_of(
    source: type[Schema],
    *,
    documented: Documented | None = None,
    parts: Parts | None = None,
    without: Collection[str] = (),
) -> Callable[[type[Model]], type[Model]]:
    """Add the fields of a resource's part to a request model: names, types, ranges and defaults.

    Args:
        source: The part of the resource.
        documented: What the document says of the fields, in its order. A field that is not among them comes after
            those, with the description that it has in the resource.
        parts: The models that stand for the parts of this part.
        without: Fields that a client may not send.
    """

    def definition(name: str, field: FieldInfo) -> tuple[Any, Any]:
        annotation = _replaced(field.rebuild_annotation(), parts or {})
        words = copy((documented or {}).get(name)) or FieldInfo(description=field.description, examples=field.examples)
        return Annotated[annotation, words], ... if field.is_required() else field.default

    return _adding(_ordered(source.model_fields, documented or {}, without), definition)


def view_of(
    source: type[BaseModel],
    *,
    documented: Documented | None = None,
    parts: Parts | None = None,
    renamed: Mapping[str, str] | None = None,
    without: Collection[str] = (),
) -> Callable[[type[Model]], type[Model]]:
    """Add the fields of a resource's part to a response model: names and types, without ranges and defaults.

    Ranges are for what comes in: what is stored stays readable after one has become tighter. A field that the response
    model has of its own stays as it is.

    Args:
        source: The part of the resource; or another response, of which this one shows a part.
        documented: What the document says of the fields, in its order; those without come after them.
        parts: The models that stand for the parts of this part.
        renamed: The name in the response of each field that has another one there; it is filled from either.
        without: Fields that the response does not show.
    """
    names = renamed or {}

    def definition(name: str, field: FieldInfo) -> tuple[Any, Any]:
        annotation = _without_ranges(_replaced(field.annotation, parts or {}))
        if words := (documented or {}).get(name):
            annotation = Annotated[annotation, copy(words)]
        if name in names:
            annotation = Annotated[annotation, FieldInfo(validation_alias=AliasChoices(names[name], name))]
        return annotation, ...

    def derive(model: type[Model]) -> type[Model]:
        fields = _ordered(source.model_fields, documented or {}, without)
        missing = {name: field for name, field in fields.items() if names.get(name, name) not in model.model_fields}
        return _adding(missing, definition, names)(model)

    return derive


def model_at(model: type[BaseModel], path: Iterable[str]) -> type[BaseModel]:
    """Return the model that describes the object under a path of fields, or the last one on the way that is known."""
    for name in path:
        field = model.model_fields.get(name)
        inner = None if field is None else next(_models_in(field.annotation), None)
        if inner is None:
            break
        model = inner
    return model


def _types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _types_in(argument)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _ordered(fields: Mapping[str, FieldInfo], documented: Documented, without: Collection[str]) -> dict[str, FieldInfo]:
    order = [*documented, *(name for name in fields if name not in documented)]
    return {name: fields[name] for name in order if name not in without}


def _adding(
    shown: Mapping[str, FieldInfo],
    definition: Callable[[str, FieldInfo], tuple[Any, Any]],
    names: Mapping[str, str] | None = None,
) -> Callable[[type[Model]], type[Model]]:
    fields: dict[str, Any] = {(names or {}).get(name, name): definition(name, field) for name, field in shown.items()}

    def derive(model: type[Model]) -> type[Model]:
        derived: type[Model] = create_model(
            model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **fields
        )
        return derived

    return derive


def _replaced(annotation: Any, parts: Parts) -> Any:
    """Put derived models in the place of a resource's parts, within unions and collections too."""
    if isinstance(annotation, type) and annotation in parts:
        return parts[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[_replaced(arguments[0], parts), *annotation.__metadata__]
    if origin in {Union, UnionType}:
        return reduce(or_, (_replaced(argument, parts) for argument in arguments))
    if origin is tuple:
        # Every tuple of a resource is a list in JSON.
        return list[_replaced(arguments[0], parts)]  # type: ignore[misc] # an annotation that is built
    return annotation


def _without_ranges(annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _without_ranges(arguments[0])
    if origin in {Union, UnionType}:
        return reduce(or_, (_without_ranges(argument) for argument in arguments))
    return annotation
