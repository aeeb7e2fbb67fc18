"""What one caller may do, as it is configured: the limits of an API key, and which jobs are seen."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NamedTuple

from limits import parse_many
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Scope(StrEnum):
    """Which jobs of the namespace a caller sees, cancels and deletes."""

    OWN = "own"
    """Those that it created over HTTP."""
    NAMESPACE = "namespace"
    """All, whoever created them, and however."""


def _check_limit(limit: str) -> str:
    if limit:
        parse_many(limit)
    return limit


RateLimit = Annotated[str, AfterValidator(_check_limit)]
"""A rate as the ``limits`` package spells it, for example ``600/minute`` or ``10/second;5000/hour``; empty for none."""

MAX_PRIORITY = 1_000_000
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]


class KeyLimits(BaseModel):
    """What one API key may do where it differs from the others."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    max_unfinished_jobs: Annotated[int, Field(ge=0)] | None = None
    max_priority: Priority | None = None
    rate_limit: RateLimit | None = None
    models: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    scope: Scope | None = None


class EffectiveLimits(NamedTuple):
    """What one caller may do; a cap of 0 is none, an empty rate too, and None is every model."""

    max_unfinished_jobs: int
    max_priority: int
    rate_limit: str
    models: tuple[str, ...] | None
