"""The commands that end with pictures: ``generate``, ``again``, ``wait``."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kubediffusion.client.commands import options
from kubediffusion.client.commands.output import Format, plain, program, say, show, show_error
from kubediffusion.client.commands.progress import ProgressBar
from kubediffusion.client.commands.saving import STDOUT, check_folder, check_target, save_images
from kubediffusion.client.commands.session import ConnectionOptions, run
from kubediffusion.client.errors import FieldProblem, InvalidRequestError, KubeDiffusionError, WaitTimeoutError
from kubediffusion.client.requests import Spec, fields_of, parse_adapter, set_field, spec_again, spec_of

if TYPE_CHECKING:
    from kubediffusion.client.aio import AsyncClient
    from kubediffusion.client.handles import AsyncJob
    from kubediffusion.client.images import GeneratedImage

NEW = "new"
MOST_SEEDS = 2**31


@dataclass(frozen=True)
class RecipeOptions:
    """How pictures are computed, but for the model and the seed."""

    steps: Annotated[int | None, typer.Option(metavar="N", help="Denoising steps; the model's by default.")] = None
    guidance: Annotated[float | None, typer.Option(metavar="X", help="Guidance scale; the model's by default.")] = None
    count: Annotated[int | None, typer.Option(metavar="N", help="How many pictures; one by default.")] = None
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, 512x768 or 512; the model's by default.")] = (
        None
    )
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What the picture should not show.")] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SCALE]",
            help="A LoRA adapter, one of `adapters`, and how strongly it counts; may be given again.",
        ),
    ] = None
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any other field of a GenerationJob's spec, as in spec.scheduler=DDIMScheduler; may be given again.",
        ),
    ] = None

    def named(self, model: str | None, seed: int | None) -> dict[str, Any]:
        """Return the fields of a request that were asked for; None where one was not."""
        return {
            "model": model,
            "seed": seed,
            "steps": self.steps,
            "guidance": self.guidance,
            "count": self.count,
            "negative": self.negative,
            "adapters": [parse_adapter(each) for each in self.lora] if self.lora else None,
        }

    def assigned(self, spec: Spec) -> Spec:
        """Return a spec with the fields that --set names."""
        for assignment in self.assignments or ():
            set_field(spec, assignment)
        return spec


@dataclass(frozen=True)
class WaitOptions:
    """How long a command waits for pictures, and what becomes of the job when it does not."""

    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the picture, or print the job's name at once.")
    ] = True
    cancel: Annotated[
        bool, typer.Option("--cancel/--no-cancel", help="Whether Ctrl-C and --timeout cancel the job.")
    ] = True
    timeout: options.Timeout = None
    quiet: options.Quiet = False


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the picture shows.")],
    save: options.Save = None,
    model: options.Model = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Noise seed of the first picture; at random by default.")
    ] = None,
    *,
    recipe: RecipeOptions,
    waiting: WaitOptions,
    output: options.Output = Format.TEXT,
    connection: ConnectionOptions,
) -> None:
    """Generate pictures of a prompt, and write them to files.

    The names of the files are printed; the way there is shown on standard error, if that is a terminal.
    """
    drawing = _Drawing(save, output, waiting)

    async def work(client: AsyncClient) -> None:
        spec = spec_of(prompt, recipe.named(model, seed), recipe.size)
        await drawing.draw(client, recipe.assigned(spec))

    run(connection, work, output, drawing.bar.retry)


def again(
    job: options.Job,
    save: options.Save = None,
    seed: Annotated[
        str | None, typer.Option(metavar="N|new", help="Another seed, or 'new' for one at random; by default the same.")
    ] = None,
    model: options.Model = None,
    *,
    recipe: RecipeOptions,
    waiting: WaitOptions,
    output: options.Output = Format.TEXT,
    connection: ConnectionOptions,
) -> None:
    """Generate what a job did once more: with the same seed, or with what is different."""
    drawing = _Drawing(save, output, waiting)

    async def work(client: AsyncClient) -> None:
        view = (await client.jobs.get(job)).view
        spec = spec_again(view, recipe.named(model, None if seed is None else _seed(seed)), recipe.size)
        await drawing.draw(client, recipe.assigned(spec))

    run(connection, work, output, drawing.bar.retry)


def wait_for_jobs(
    jobs: options.Jobs,
    save: options.Save = None,
    timeout: options.Timeout = None,
    quiet: options.Quiet = False,
    *,
    output: options.Output = Format.TEXT,
    connection: ConnectionOptions,
) -> None:
    """Wait for jobs to end; with -o their pictures are written too.

    The exit code is that of the first one that did not succeed.
    """
    bar = ProgressBar()

    async def work(client: AsyncClient) -> None:
        if len(jobs) > 1 and save is not None:
            check_folder(save)
        failures: list[KubeDiffusionError] = []
        for name in jobs:
            try:
                job = await client.jobs.get(name)
                if save is not None:
                    check_target(save, _count(fields_of(job.view.request)))
                with bar.shown(quiet=quiet):
                    await job.wait(timeout, on_change=bar.job)
                    images = None if save is None else await job.images()
                _show(job, images, save, output)
            except KubeDiffusionError as error:
                failures.append(error)
        for failure in failures[1:]:
            show_error(failure, output)
        if failures:
            raise failures[0]

    run(connection, work, output, bar.retry)


@dataclass(frozen=True)
class _Drawing:
    """How a command creates a job and shows it, by its options."""

    save: str | None
    output: Format
    waiting: WaitOptions
    bar: ProgressBar = field(default_factory=ProgressBar)

    async def draw(self, client: AsyncClient, spec: Spec) -> None:
        """Create the job, wait for its pictures unless nobody does, and show them."""
        wait, cancel = self.waiting.wait, self.waiting.cancel
        if wait:
            check_target(self.save, _count(spec))
        with self.bar.shown(quiet=self.waiting.quiet):
            job = await client.submit_spec(spec, cancel=cancel)
            images = await _drawn(job, self.bar, self.waiting.timeout, cancel=cancel) if wait else None
        _show(job, images, self.save, self.output)


async def _drawn(job: AsyncJob, bar: ProgressBar, timeout: float | None, *, cancel: bool) -> list[GeneratedImage]:  # noqa: ASYNC109 - ends with our error
    try:
        await job.wait(timeout, cancel=cancel, on_change=bar.job)
        return await job.images()
    except (asyncio.CancelledError, WaitTimeoutError):
        if not job.view.finished and not job.view.cancel_requested:
            say(f"job {job.name} goes on; `{program()} cancel {job.name}` ends it")
        elif job.view.phase != "Succeeded":
            say(f"job {job.name} has been cancelled")
        raise


def _show(job: AsyncJob, images: list[GeneratedImage] | None, save: str | None, output: Format) -> None:
    view = job.view
    files = [] if images is None else save_images(images, save, view.prompt)
    for warning in view.warnings:
        say(f"warning: {warning}")
    for image in images or ():
        if image.flagged:
            say(f"warning: the safety checker flagged image {image.index}, which is blank")
    if files == [STDOUT]:
        return
    if output is not Format.TEXT:
        show(plain(view) | {"files": files}, output)
        return
    for line in files or [view.name]:
        typer.echo(line)


def _count(spec: Spec) -> int:
    count = spec.get("num_images")
    return count if isinstance(count, int) else 1


def _seed(text: str) -> int:
    if text == NEW:
        return secrets.randbelow(MOST_SEEDS)
    try:
        return int(text)
    except ValueError:
        raise InvalidRequestError([FieldProblem("seed", f"{text!r} is neither a number nor {NEW!r}")]) from None
