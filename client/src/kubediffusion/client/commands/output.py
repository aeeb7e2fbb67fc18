"""What the command line prints: results on standard output, everything about the way there on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from kubediffusion.client.commands.exit_codes import exit_code_of
from kubediffusion.client.requests import SHORT_WORDS

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from kubediffusion.client.errors import KubeDiffusionError

View = TypeVar("View", bound="BaseModel")

WIDE = 1000
"""Columns of a table that nobody looks at: a program reads whole names."""

_OPTIONS = {field: f"--{short}" for short, field in SHORT_WORDS.items()} | {
    "width": "--size", "height": "--size", "model": "--model", "seed": "--seed", "size": "--size", "server": "--server",
    "save": "-o", "api_key": "--api-key",
}  # fmt: skip


class Format(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


def program() -> str:
    """Return how this program was called."""
    return "kubectl diffuse" if sys.argv[0].endswith("kubectl-diffuse") else "kubediffusion"


def console(*, error: bool = False) -> Console:
    """Return a console on standard output, or on standard error."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(stderr=error, highlight=False, markup=False, width=None if stream.isatty() else WIDE)


def plain(value: BaseModel) -> dict[str, Any]:
    """Return a value as JSON has it, with names in snake_case, as the HTTP API."""
    return value.model_dump(mode="json")


def show(value: Any, output: Format) -> None:
    """Print a value for programs."""
    if output is Format.YAML:
        import yaml

        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    else:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A prompt may hold what the terminal cannot write.
    sys.stdout.write(text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding))


def show_list(
    views: Sequence[View], output: Format, heads: Sequence[str], row: Callable[[View], Sequence[str]]
) -> None:
    """Print what a command lists: for programs each of them whole, for people a table.

    Args:
        views: What is listed.
        output: How.
        heads: The table's heads.
        row: Returns the cells of one of them.
    """
    if output is not Format.TEXT:
        show([plain(view) for view in views], output)
    else:
        show_table(heads, map(row, views))


def show_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as kubectl does."""
    from rich.table import Table

    table = Table(*heads, box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in table.columns[:1]:
        column.no_wrap = True
    for column in table.columns[-1:]:
        column.overflow, column.no_wrap = "ellipsis", True
    for row in rows:
        table.add_row(*(one_line(cell) for cell in row))
    out = console()
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as capture:
        out.print(table)
    for line in capture.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def one_line(text: str) -> str:
    """Return a text without what would break a table or move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def show_error(error: KubeDiffusionError, output: Format) -> None:
    """Print an error: the field, the reason, and what helps."""
    remedy = error.remedy.replace("`kubediffusion ", f"`{program()} ")
    if output is not Format.TEXT:
        body = {
            "type": type(error).__name__,
            "field": error.field,
            "reason": error.reason,
            "remedy": remedy,
            "status": error.status,
            "exit_code": int(exit_code_of(error)),
        }
        sys.stderr.write(json.dumps({"error": body}, ensure_ascii=True) + "\n")
        return
    problems = getattr(error, "problems", None) or [error]
    for problem in problems:
        say(f"error: {_field(problem.field)}{problem.reason}")
    if remedy:
        say(f"hint: {remedy}")


def say(text: str) -> None:
    """Print a line to standard error."""
    encoding = sys.stderr.encoding
    sys.stderr.write(one_line(text).encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stderr.flush()


def _field(field: str | None) -> str:
    if field is None:
        return ""
    option = _OPTIONS.get(field)
    if option is None:
        return f"{field}: "
    return f"{option}: " if option in {f"--{field}", "-o"} else f"{option} ({field}): "
