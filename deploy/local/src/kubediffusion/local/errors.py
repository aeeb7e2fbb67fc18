"""What can go wrong on one machine, told in a line that says what to do."""

from __future__ import annotations

from pathlib import Path

TAIL_LINES = 15
LINE_CHARACTERS = 240


class LocalError(Exception):
    """A part could not start, stopped, or the machine lacks something. The message is meant for a person."""


class PartFailedError(LocalError):
    """A process of ours did not become ready, or ended by itself.

    Attributes:
        part: The name of the process.
        log: Where its output went.
    """

    def __init__(self, part: str, what: str, log: Path) -> None:
        self.part = part
        self.log = log
        # Some parts log whole stack traces on a line.
        tail = "\n".join(line[:LINE_CHARACTERS] for line in log_tail(log).splitlines())
        super().__init__(f"{part} {what}; its log is {log}" + (f" and ends with:\n{tail}" if tail else ""))


class NotInTimeError(LocalError):
    """Something that was waited for did not come about within its time."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what}: not within {seconds:g} s")


def log_tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log, or nothing where there is no log yet."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
