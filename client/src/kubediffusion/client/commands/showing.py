"""The commands that show and change what there is: jobs (``list``, ``get``, …), ``models`` and ``adapters``."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kubediffusion.client.commands import options
from kubediffusion.client.commands.output import Format, one_line, plain, show, show_list, show_table
from kubediffusion.client.commands.session import ConnectionOptions, run
from kubediffusion.client.commands.words import age, explanation

if TYPE_CHECKING:
    from kubediffusion.client.aio import AsyncClient
    from kubediffusion.client.views import AdapterView, JobSummary, ModelView


JOB_HEADS = ("NAME", "MODEL", "PHASE", "PROGRESS", "PLACE", "AGE", "PROMPT")


def list_jobs(
    phase: Annotated[
        list[str] | None, typer.Option(metavar="PHASE", help="Only jobs in this phase; may be given again.")
    ] = None,
    model: options.Model = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="The newest so many; 0 for all.")] = 20,
    *,
    output: options.Output = Format.TEXT,
    connection: ConnectionOptions,
) -> None:
    """List jobs, the newest first."""

    async def work(client: AsyncClient) -> list[JobSummary]:
        found: list[JobSummary] = []
        wanted = [name.capitalize() for name in phase or ()]
        async for job in client.jobs.list(phase=wanted, model=model, page_size=min(limit or 500, 500)):
            found.append(job)
            if len(found) == limit:
                break
        return found

    jobs = run(connection, work, output)
    show_list(jobs, output, JOB_HEADS, _job_row)


def get(
    job: options.Job,
    *,
    output: options.Output = Format.TEXT,
    connection: ConnectionOptions,
) -> None:
    """Show a job in one line, or all that is known of it with --output."""

    async def work(client: AsyncClient) -> JobSummary:
        return (await client.jobs.get(job)).view

    view = run(connection, work, output)
    if output is not Format.TEXT:
        show(plain(view), output)
    else:
        show_table(JOB_HEADS, [_job_row(view)])


def explain(
    job: options.Job,
    *,
    output: options.Output = Format.TEXT,
    connection: ConnectionOptions,
) -> None:
    """Say why a job waits, what ran, how often it was tried again, what it took, and how it ended."""

    async def work(client: AsyncClient) -> None:
        view = (await client.jobs.get(job)).view
        lines = explanation(view, dt.datetime.now(dt.UTC))
        if output is not Format.TEXT:
            show([{"about": about, "text": text} for about, text in lines], output)
            return
        width = max(len(about) for about, _ in lines) + 2
        for about, text in lines:
            typer.echo(f"{about:{width}}{one_line(text)}")

    run(connection, work, output)


def cancel(
    jobs: options.Jobs,
    *,
    output: options.Output = Format.TEXT,
    connection: ConnectionOptions,
) -> None:
    """Cancel jobs: those that wait at once, those that run at their next step."""

    async def work(client: AsyncClient) -> None:
        cancelled = []
        for name in jobs:
            view = await (await client.jobs.get(name)).cancel()
            cancelled.append(plain(view))
            if output is Format.TEXT:
                typer.echo(view.name)
        if output is not Format.TEXT:
            show(cancelled, output)

    run(connection, work, output)


def open_images(
    job: options.Job,
    *,
    connection: ConnectionOptions,
) -> None:
    """Show the pictures of a job with the program that this machine has for pictures."""

    async def work(client: AsyncClient) -> list[Path]:
        folder = Path(tempfile.mkdtemp(prefix="kubediffusion-"))
        images = await (await client.jobs.get(job)).images()
        return [image.save(folder / f"{job}-{image.index}.png") for image in images]

    for path in run(connection, work):
        typer.echo(path)
        typer.launch(str(path))


def models(
    *,
    output: options.Output = Format.TEXT,
    connection: ConnectionOptions,
) -> None:
    """List the models: whether each can be used, its defaults and the most that it takes."""

    async def work(client: AsyncClient) -> list[ModelView]:
        return await client.models.list()

    found = run(connection, work, output)
    heads = ("NAME", "DEFAULT", "AVAILABLE", "WORKERS", "QUEUED", "STEPS", "SIZE", "MOST", "WHY")
    show_list(found, output, heads, _model_row)


def adapters(
    model: options.Model = None,
    *,
    output: options.Output = Format.TEXT,
    connection: ConnectionOptions,
) -> None:
    """List the LoRA adapters: of which model each is, whether a worker holds it, and why not."""

    async def work(client: AsyncClient) -> list[AdapterView]:
        return await client.adapters.list(model)

    found = run(connection, work, output)
    show_list(found, output, ("NAME", "MODEL", "SCALE", "LOADED", "WORDS", "WHY"), _adapter_row)


def _adapter_row(adapter: AdapterView) -> tuple[str, ...]:
    loaded, why = ("yes", "") if adapter.ready else ("no", adapter.message or adapter.reason)
    return (adapter.name, adapter.model, f"{adapter.scale:g}", loaded, ", ".join(adapter.trigger_words), why)


def _job_row(job: JobSummary) -> tuple[str, ...]:
    return (
        job.name,
        job.model or "",
        job.phase,
        job.progress or "",
        str(job.queue_position or ""),
        age(job, dt.datetime.now(dt.UTC)),
        job.prompt,
    )


def _model_row(model: ModelView) -> tuple[str, ...]:
    defaults, limits, workers = model.defaults, model.limits, model.workers
    size = f"{defaults['width']}x{defaults['height']}" if defaults.get("width") and defaults.get("height") else ""
    return (
        model.name,
        "yes" if model.default else "",
        "yes" if model.available else "no",
        f"{workers.ready} ready, {workers.busy} busy" + (f", {workers.starting} starting" if workers.starting else ""),
        str(model.queued),
        str(defaults.get("num_inference_steps") or ""),
        size,
        f"{limits.num_inference_steps} steps, {limits.width}x{limits.height}, {limits.num_images} pictures",
        "" if model.available and not workers.starting else model.message or model.reason,
    )
