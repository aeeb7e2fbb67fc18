"""A job as the manifest that makes its images again. Pure."""

from __future__ import annotations

from typing import Any

from kubediffusion.api.errors import StateConflictError
from kubediffusion.resources import meta
from kubediffusion.resources.generation_job import Acceleration, GenerationJob, GenerationJobSpec, Scheduler

MAX_NAME = 253
SUFFIX = "-again"


def recipe_manifest(job: GenerationJob) -> dict[str, Any]:
    """Build the GenerationJob that names all that a job was really run with, of which pixels depend on.

    The values are those of ``status.parameters``, which the worker writes into each PNG as well.

    Raises:
        StateConflictError: No worker has had the job: its defaults and its seed are not resolved.
    """
    ran = job.status.parameters
    if ran is None:
        raise StateConflictError(f"The job has no recipe yet: it is {job.status.phase}.")
    shared = ran.model_fields_set & GenerationJobSpec.model_fields.keys()
    known = {field: value for field in shared if (value := getattr(ran, field)) is not None}
    # A model may have a scheduler of its own that no job can ask for; it has it again.
    if ran.scheduler not in set(Scheduler):
        known.pop("scheduler", None)
    # None at all, whatever the model's default may be by then.
    known.setdefault("acceleration", Acceleration())
    known.setdefault("prompt_weighting", False)
    spec = GenerationJobSpec(prompt=job.spec.prompt, **known)
    return {
        "apiVersion": meta.API_VERSION,
        "kind": GenerationJob.KIND,
        "metadata": {"name": job.name[: MAX_NAME - len(SUFFIX)].rstrip("-.") + SUFFIX},
        "spec": spec.to_wire(),
    }
