"""Adapters as jobs name them, as a recipe tells of them, and as a worker reports those that it holds or refuses."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from kubediffusion.resources.schema import Schema
from kubediffusion.resources.texts import MAX_NOTE, cut_to

MAX_ADAPTERS = 4
"""Adapters of one job: each takes a slot of every image that shares its steps."""
MAX_SCALE = 10.0
DEFAULT_SCALE = 1.0
MAX_RANK = 4096
MAX_ADAPTER_NAME = 63
MAX_REPORTS = 256
"""Adapters that one worker reports at most: the list stands in its Pod, which is rewritten as a whole."""
MAX_REPORT_TEXT = 256 * 1024
"""Characters of what a worker reports of its adapters, beyond which nobody parses it."""
MAX_PARSED_TEXT = 4 * 1024 * 1024
"""Characters of such reports that are kept parsed: those of a hundred workers that hold 150 adapters each."""

AdapterName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=MAX_ADAPTER_NAME)]
AdapterScale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]


class JobAdapter(Schema):
    """An adapter that a job's images are made with: a LoRAAdapter of its namespace, for its model."""

    name: AdapterName
    """The LoRAAdapter."""
    scale: AdapterScale | None = None
    """How strongly it counts: 0 is not at all, 1 as it was trained; by default the adapter's own scale."""


Adapters = Annotated[tuple[JobAdapter, ...], Field(min_length=1, max_length=MAX_ADAPTERS)]
"""Adapters of a job, each name once at most."""


class AppliedAdapter(Schema):
    """An adapter that images were made with, for the recipe."""

    name: AdapterName
    """The LoRAAdapter."""
    scale: AdapterScale
    """How strongly it counted."""
    digest: Digest | None = None
    """SHA-256 of its weights' file, in hexadecimal, as the worker read it; absent until a worker has loaded it."""


class AdapterReport(Schema):
    """What one worker says of one adapter: the digest and rank of one that it holds, or why it refuses it."""

    model_config = ConfigDict(extra="ignore")

    uid: Annotated[str, Field(max_length=64)] | None = None
    """The LoRAAdapter that it speaks of: another one of the same name has another uid."""
    generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the LoRAAdapter's spec that it speaks of."""
    digest: Digest | None = None
    """SHA-256 of the weights' file, in hexadecimal; of one that the worker holds."""
    rank: Rank | None = None
    """The largest rank of its layers; of one that the worker holds."""
    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]*$", max_length=63)] | None = None
    """Why it is refused: an AdapterReason."""
    message: Annotated[str, cut_to(MAX_NOTE)] = ""
    """Why, for people: what was found, and the remedy."""

    @model_validator(mode="after")
    def _held_or_refused(self) -> AdapterReport:
        if (self.digest is None) == (self.reason is None) or (self.digest is None) != (self.rank is None):
            raise ValueError("a report has digest and rank of an adapter that is held, or the reason why it is not")
        return self

    @property
    def held(self) -> bool:
        """Whether the worker holds the adapter."""
        return self.digest is not None

    def speaks_of(self, uid: str, generation: int) -> bool:
        """Whether this is a report on the adapter with this uid, as its spec of this generation has it."""
        return self.uid in (None, uid) and self.generation in (None, generation)


_REPORTS = TypeAdapter(dict[AdapterName, AdapterReport])


def reports_to_json(reports: Mapping[str, AdapterReport]) -> str:
    """Serialise what a worker says of its adapters, by name, for the condition ``AdaptersKnown`` of its Pod.

    Of more than :data:`MAX_REPORTS`, or more than fit :data:`MAX_REPORT_TEXT`, the first are told: put first what
    matters most.
    """
    parts: list[str] = []
    room = MAX_REPORT_TEXT
    for name, report in list(reports.items())[:MAX_REPORTS]:
        part = f"{json.dumps(name)}:{json.dumps(report.to_wire(), separators=(',', ':'))}"
        room -= len(part) + 1
        if room < 1:
            break
        parts.append(part)
    return f"{{{','.join(parts)}}}"


_ENTRY = 256
"""Characters that an entry counts beside its text, so that the shortest ones are not without number."""


class _ParsedReports:
    """Keeps what was parsed last: parsed, an adapter takes some eight times the text, and each change is a new text.

    Args:
        capacity: Characters of the texts that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0
        # Least recently used first.
        self._known: OrderedDict[str, Mapping[str, AdapterReport]] = OrderedDict()

    def get(self, text: str) -> Mapping[str, AdapterReport]:
        """Return what a text says, parsed where it is not kept."""
        if (known := self._known.get(text)) is not None:
            self._known.move_to_end(text)
            return known
        reports = self._known[text] = _parse(text)
        self._used += len(text) + _ENTRY
        while self._used > self._capacity:
            self._used -= len(self._known.popitem(last=False)[0]) + _ENTRY
        return reports


def _parse(text: str) -> Mapping[str, AdapterReport]:
    try:
        reports = _REPORTS.validate_json(text)
    except ValueError:
        # Workers may run anybody's code: what is no report tells of no adapter.
        return {}
    return reports if len(reports) <= MAX_REPORTS else {}


_PARSED = _ParsedReports(MAX_PARSED_TEXT)


def reports_from_json(text: str) -> Mapping[str, AdapterReport]:
    """Parse what a worker says of its adapters; empty where it is something else, as workers may run anybody's code.

    For one thread: the operator asks for each adapter and worker, and what was parsed last is kept.
    """
    return _PARSED.get(text) if len(text) <= MAX_REPORT_TEXT else {}
