"""docs/client.md names every command, exit code and error."""

from __future__ import annotations

import documented
from kubediffusion import client
from kubediffusion.client.commands.exit_codes import ExitCode
from kubediffusion.client.commands.main import COMMANDS

PAGE = "client"


def test_every_command() -> None:
    named = [word.split()[0] for cell, _ in documented.table(PAGE, "Command line") for word in documented.code(cell)]
    assert set(named) - {"PROMPT"} == set(COMMANDS)


def test_every_exit_code() -> None:
    named = [int(code) for cell, _ in documented.table(PAGE, "Command line", 1) for code in documented.code(cell)]
    assert named == list(ExitCode)


def test_every_error() -> None:
    named = {error for cell, _ in documented.table(PAGE, "Python", 1) for error in documented.code(cell)}
    assert named == {name for name in client.__all__ if name.endswith("Error")} - {"KubeDiffusionError"}
