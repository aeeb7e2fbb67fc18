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

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.fields import FieldInfo

from kubediffusion.resources.schema import Schema

Model = TypeVar("Model", bound=BaseModel)
Parts = Mapping[type[Schema], type[BaseModel]]
"""Which derived model stands for which part of a resource."""

Documented = Mapping[str, FieldInfo]
"""Descriptions and examples of fields, for clients."""


class RequestModel(BaseModel):
    """A request. An unknown field is an error, since a mistyped one would be silently without effect."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, from_attributes=True)


class ResponseModel(BaseModel):
    """A response, or a part of one. It can be built from the part of a resource that it was derived from."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True, protected_namespaces=())


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

    def definition(field: FieldInfo, words: FieldInfo | None) -> tuple[Any, Any]:
        annotation = _replaced(field.rebuild_annotation(), parts or {})
        words = copy(words) or FieldInfo(description=field.description)
        return Annotated[annotation, words], ... if field.is_required() else field.default

    return _adding(source, documented or {}, without, definition)


def view_of(
    source: type[Schema],
    *,
    documented: Documented | None = None,
    parts: Parts | None = None,
    without: Collection[str] = (),
) -> Callable[[type[Model]], type[Model]]:
    """Add the fields of a resource's part to a response model: names and types, without ranges and defaults.

    Ranges are for what comes in: what is stored stays readable after one has become tighter.

    Args:
        source: The part of the resource.
        documented: What the document says of the fields, in its order; those without come after them.
        parts: The models that stand for the parts of this part.
        without: Fields that the response does not show.
    """

    def definition(field: FieldInfo, words: FieldInfo | None) -> tuple[Any, Any]:
        annotation = _without_ranges(_replaced(field.annotation, parts or {}))
        return (Annotated[annotation, copy(words)] if words else annotation), ...

    return _adding(source, documented or {}, without, definition)


def model_at(model: type[BaseModel], path: Iterable[str]) -> type[BaseModel]:
    """Return the model that describes the object under a path of fields, or the last one on the way that is known."""
    for name in path:
        field = model.model_fields.get(name)
        inner = None if field is None else next(_models_in(field.annotation), None)
        if inner is None:
            break
        model = inner
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _adding(
    source: type[Schema],
    documented: Documented,
    without: Collection[str],
    definition: Callable[[FieldInfo, FieldInfo | None], tuple[Any, Any]],
) -> Callable[[type[Model]], type[Model]]:
    shown = {name: field for name, field in source.model_fields.items() if name not in without}
    order = [*documented, *(name for name in shown if name not in documented)]
    fields: dict[str, Any] = {name: definition(shown[name], documented.get(name)) for name in order}

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
