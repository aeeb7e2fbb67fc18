"""The program ``kubediffusion``, which kubectl runs as ``kubectl diffuse``."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kubediffusion.client.commands import drawing, options, showing
from kubediffusion.client.commands.exit_codes import ExitCode
from kubediffusion.client.commands.output import program

GENERATE = "generate"


class PromptGroup(TyperGroup):
    """Commands; what begins with none of them is a prompt. The type of a context is private to Typer."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; without a command it is that of ``generate``.

        Raises:
            typer.BadParameter: It is a single word that looks like a command: nothing is generated of a slip.
        """
        if args and args[0] not in self.commands and args[0] not in self._own_options(ctx):
            if len(args) == 1 and (close := difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.7)):
                raise typer.BadParameter(
                    f"there is no command {args[0]!r}; did you mean {close[0]!r}? "
                    f"{program()} {GENERATE} {args[0]} takes it as a prompt",
                    ctx,
                )
            args = [GENERATE, *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Whoever reads may go when they have seen enough, as ``head`` does."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Nothing more goes there, not even at the end of this program.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.DONE) from None
        return result

    def _own_options(self, ctx: Any) -> set[str]:
        return {option for parameter in self.get_params(ctx) for option in (*parameter.opts, *parameter.secondary_opts)}


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"kubediffusion {version('kubediffusion-client')}")
        raise typer.Exit


app = typer.Typer(
    cls=PromptGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: "
    + ", ".join(f"{int(code)} {code.name.lower().replace('_', ' ')}" for code in ExitCode)
    + ". docs/client.md says more.",
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Generate pictures with KubeDiffusion.

    A prompt alone is enough, as in kubediffusion "a fox in the snow" -o fox.png.
    """


COMMANDS: dict[str, Callable[..., None]] = {
    GENERATE: drawing.generate,
    "again": drawing.again,
    "wait": drawing.wait_for_jobs,
    "list": showing.list_jobs,
    "get": showing.get,
    "explain": showing.explain,
    "cancel": showing.cancel,
    "open": showing.open_images,
    "models": showing.models,
    "adapters": showing.adapters,
}

for name, command in COMMANDS.items():
    app.command(name)(options.spread(command))


def main() -> None:
    """Run the program."""
    app(prog_name=program())
