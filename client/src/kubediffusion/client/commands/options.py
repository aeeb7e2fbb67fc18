"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from inspect import Parameter, Signature, signature
from itertools import islice
from typing import Annotated, Any, get_type_hints

import typer

from kubediffusion.client.commands.output import Format

COMPLETED_JOBS = 50
"""The newest jobs, whose names the shell completes."""


def _jobs(incomplete: str) -> Iterable[str]:
    """Complete the name of a job; where no server answers at once, nothing."""
    from kubediffusion.client import Client, KubeDiffusionError

    try:
        with Client(timeout=2.0, retry_seconds=0) as client:
            jobs = list(islice(client.jobs.list(page_size=COMPLETED_JOBS), COMPLETED_JOBS))
    except KubeDiffusionError:
        return []
    return [job.name for job in jobs if job.name.startswith(incomplete)]


def _models(incomplete: str) -> Iterable[str]:
    """Complete the name of a model."""
    from kubediffusion.client import Client, KubeDiffusionError

    try:
        with Client(timeout=2.0, retry_seconds=0) as client:
            models = client.models.list()
    except KubeDiffusionError:
        return []
    return [model.name for model in models if model.name.startswith(incomplete)]


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for Typer, which knows no groups of options, of one that takes some in a dataclass.

    Each parameter whose type is a dataclass becomes its fields, which are options of the command in its place.
    """
    types = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in types.items() if isinstance(kind, type) and is_dataclass(kind)}
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        own = signature(groups[name]).parameters if name in groups else {name: parameter}
        kinds = get_type_hints(groups[name], include_extras=True) if name in groups else types
        parameters += [
            each.replace(kind=Parameter.KEYWORD_ONLY, annotation=kinds[option]) for option, each in own.items()
        ]

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{option.name: given.pop(option.name) for option in fields(group)})
        command(**given)

    run.__doc__ = command.__doc__
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


_PLACE = "Where"

Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Address of the HTTP API, else KUBEDIFFUSION_SERVER. Without either, the kubeconfig's cluster; without "
        "that, http://localhost:8000.",
        rich_help_panel=_PLACE,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "-n",
        "--namespace",
        metavar="NAME",
        help="Namespace in the kubeconfig's cluster; that of its context by default.",
        rich_help_panel=_PLACE,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="API key, else KUBEDIFFUSION_API_KEY: on the command line others see it.",
        rich_help_panel=_PLACE,
    ),
]
Retry = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=0, help="How long to try again what may pass.", rich_help_panel=_PLACE),
]
Output = Annotated[Format, typer.Option(help="How results are printed, and errors.")]
Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.", autocompletion=_jobs)]
Jobs = Annotated[list[str], typer.Argument(metavar="JOB…", help="The jobs' names.", autocompletion=_jobs)]
Model = Annotated[
    str | None, typer.Option(metavar="NAME", help="The model; the default one by default.", autocompletion=_models)
]
Save = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--save",
        metavar="FILE",
        help="Where the picture goes: a .png, .jpg or .webp, a folder, or - for standard output. Of several, "
        "each has its number in its name. By default a new file named after the prompt.",
    ),
]
Timeout = Annotated[
    float | None, typer.Option(metavar="SECONDS", min=0, help="Give up after so long; never by default.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")]
