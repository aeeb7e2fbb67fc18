"""Writes docs/models.md of what was found: the same text for the same findings."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import diffusers

from census import registry
from census.probe import Finding
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.families.calls import CallPlan
from kubediffusion.worker.loading.weights import check_class

_HEAD = """# Models

Every text-to-image pipeline of diffusers {version}, and how the worker runs it. `make models` writes this page: it
builds a tiny random model of each row (`tests/census`), loads it as the worker loads any model, and compares its images
with those of diffusers' own call, of the same request alone and of the same request again. All of it runs on the CPU in
float32; precision, steps, guidance and memory are those of the published models, and are not measured here.

**Runs in** says what makes the images. `continuous` steps images of several jobs together, and each enters and leaves
between two steps; `diffusers` is the pipeline's own call, of one image unless the class is known to be indifferent to
what else is in the call. Only the first has [previews](api.md#v1). **Own call** and **beside others** give the largest
difference of a pixel in levels of 255: from diffusers' own call, and from the same image alone. `≤ 1` is rounding.
**Repeats**: the same bytes twice with `deterministic: true`. **Progress**: steps are told, and a cancelled image ends
at its next step.

| {columns} |
| {rules} |
"""

_COLUMNS = (
    "model",
    "diffusers class",
    "runs in",
    "own call",
    "beside others",
    "repeats",
    "progress",
    "precision",
    "steps",
    "guidance",
    "weights",
)

_WITHOUT = """
## Without a tiny model

The worker takes these too. One whose first image fails, as of those that need an image, is `LoadFailed` with the
reason.

"""

_REFUSED = """
## Refused at load

These make no images, or none of a text: `LoadFailed`, before their weights are read.
"""


def text(findings: Mapping[str, Finding]) -> str:
    """Render the page.

    Args:
        findings: What was found of each row by its name; a row without one says so.
    """
    columns, rules = " | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)
    page = _HEAD.format(version=diffusers.__version__, columns=columns, rules=rules)
    for name, row in registry.MODELS.items():
        if not row.refused:
            page += _row(row, findings.get(name)) + "\n"
    page += _WITHOUT + _list(unbuilt()) + _REFUSED
    for reason, names in sorted(refused().items()):
        page += f"\n{reason[0].upper()}{reason[1:]}:\n\n{_list(names)}"
    return page


def unbuilt() -> list[str]:
    """Name the classes that pass the check at load and that no row stands for."""
    built = {row.pipeline for row in registry.MODELS.values()}
    return sorted(name for name in classes() if name not in built and _refusal(name) is None)


def refused() -> dict[str, list[str]]:
    """Name the classes that are refused by what their call takes and gives, by the reason."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in classes():
        if (reason := _refusal(name)) is not None:
            found[reason].append(name)
    return found


def classes() -> list[str]:
    """Name every pipeline class of diffusers."""
    names = [name for name in dir(diffusers) if "Pipeline" in name and name != "DiffusionPipeline"]
    return sorted(name for name in names if _is_pipeline(getattr(diffusers, name)))


def _is_pipeline(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, diffusers.DiffusionPipeline)


def _refusal(name: str) -> str | None:
    try:
        check_class({"_class_name": name})
        CallPlan.of(getattr(diffusers, name))
    except BadModelError as error:
        return str(error).removeprefix(f"{name} is not a text-to-image pipeline: ").removeprefix(f"{name} ")
    return None


def _row(row: registry.Model, finding: Finding | None) -> str:
    typical = [
        row.precision,
        "-" if row.steps is None else str(row.steps),
        "-" if row.guidance is None else f"{row.guidance:g}",
        "-" if row.gigabytes is None else f"{row.gigabytes:g} GB",
    ]
    if finding is None:
        found = ["not run", "-", "-", "-", "-"]
    elif finding.refused or finding.failed:
        found = [f"{'`LoadFailed`' if finding.refused else 'fails'}: {finding.refused or finding.failed}", *"----"]
    else:
        found = [
            f"`{finding.engine}`",
            _levels(finding.own),
            _levels(finding.beside),
            "yes" if finding.repeats else "no",
            "yes" if finding.progress and finding.cancels else "no",
        ]
    return f"| {' | '.join([row.name, f'`{row.pipeline}`', *found, *typical])} |"


def _levels(levels: int) -> str:
    return "≤ 1" if levels <= 1 else f"**{levels}**"


def _list(names: list[str]) -> str:
    return "".join(f"- `{name}`\n" for name in names)
