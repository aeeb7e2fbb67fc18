"""A job in words: where it stands, why it waits, what ran. Pure."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubediffusion.client.views import JobSummary, JobView
    from kubediffusion.resources.generation_job import Parameters, Timings


def standing(job: JobView) -> str:
    """Say in one line where a job stands."""
    if job.phase == "Pending":
        return _waiting(job)
    if job.phase == "Scheduled":
        return f"is given to {job.worker}"
    if job.phase == "Running":
        return f"runs on {job.worker}"
    return str(job.phase).lower()


def duration(seconds: float) -> str:
    """Write a time as kubectl does: ``15ms``, ``4.2s``, ``3m10s``, ``2h5m``, ``4d``."""
    seconds = max(seconds, 0.0)
    if seconds < 0.1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60}m"
    return f"{whole // 86400}d"


def age(job: JobSummary, now: dt.datetime) -> str:
    """Say how long ago a job was created."""
    return duration((now - job.created_at).total_seconds())


def explanation(job: JobView, now: dt.datetime) -> list[tuple[str, str]]:
    """Say why a job waits, what ran, what it took, and how it ended: lines with a word before each."""
    lines = [("job", job.name), ("prompt", job.prompt), ("model", _model(job))]
    lines.append(("phase", f"{job.phase}, {_since(job, now)}"))
    if job.phase == "Pending":
        lines.append(("waits", _waiting(job)))
    elif not job.finished:
        lines.append(("now", standing(job) + (f", step {job.progress}" if job.progress else "")))
    if job.cancel_requested and not job.finished:
        lines.append(("cancel", "has been asked for; a running job stops at its next step"))
    if job.parameters is not None:
        lines.append(("recipe", parameters_text(job.parameters)))
        if machine := _machine(job.parameters):
            lines.append(("ran", machine))
    if job.attempt:
        lines.append(("attempts", _attempts(job)))
    if job.timings is not None and (spent := _timings(job.timings)):
        lines.append(("took", spent))
    if job.error is not None:
        lines.append(("error", f"{job.error.code}: {job.error.message}"))
    lines += [("warning", warning) for warning in job.warnings]
    for image in job.images:
        flagged = ", blanked by the safety checker" if image.flagged else ""
        lines.append(
            (f"image {image.index}", f"{image.width}x{image.height}, {image.bytes} bytes, {image.uri}{flagged}")
        )
    return lines


def parameters_text(ran: Parameters) -> str:
    """Say with which parameters a job was run."""
    size = f"{ran.width}x{ran.height}, " if ran.width and ran.height else ""
    scheduler = f", {ran.scheduler}" if ran.scheduler else ""
    adapters = "".join(f", {each.name} at {each.scale:g}" for each in ran.adapters or ())
    return (
        f"{ran.num_images} of {size}{ran.num_inference_steps} steps, guidance {ran.guidance_scale:g}{scheduler}, "
        f"seed {ran.seed}{adapters}"
    )


def _model(job: JobView) -> str:
    ran = job.parameters.model if job.parameters else None
    return job.model or (f"{ran}, the default one" if ran else "the default one")


def _waiting(job: JobView) -> str:
    place = f"place {job.queue_position} in the queue" if job.queue_position else ""
    reason = f"{job.waiting.message} ({job.waiting.reason})" if job.waiting else ""
    if job.suspended and not reason:
        reason = "it is suspended"
    return ": ".join(part for part in (place, reason) if part) or "waits for the operator"


def _since(job: JobView, now: dt.datetime) -> str:
    if job.completed_at is None:
        return f"created {age(job, now)} ago"
    return f"{duration((job.completed_at - job.created_at).total_seconds())} after it was created"


def _machine(ran: Parameters) -> str:
    parts = [ran.pipeline, ran.engine, ran.device, ran.torch_dtype]
    return ", ".join(part for part in parts if part)


def _attempts(job: JobView) -> str:
    died = f"; workers that died with it: {job.retries}" if job.retries else ""
    return f"{job.attempt}, the last on {job.worker}{died}" if job.worker else f"{job.attempt}{died}"


def _timings(timings: Timings) -> str:
    spent = {"in the queue": timings.queue, "inference": timings.inference, "upload": timings.upload}
    return ", ".join(f"{duration(seconds)} {what}" for what, seconds in spent.items() if seconds is not None)
