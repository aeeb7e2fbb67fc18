"""How long a finished job stays: one order of precedence, for the API and the operator alike."""

from __future__ import annotations

from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJobSpec


def time_to_live(spec: GenerationJobSpec, model: DiffusionModel | None, default: int) -> int | None:
    """Return the seconds that a job stays once it has finished: its own, else its model's, else the installation's.

    Args:
        spec: Spec of the job.
        model: Its model; None where that does not exist.
        default: Seconds of the installation; 0 is for ever. A job's or a model's own 0 is none at all.

    Returns:
        The seconds; None when it stays for ever.
    """
    if spec.ttl_seconds_after_finished is not None:
        return spec.ttl_seconds_after_finished
    if model is not None and model.spec.ttl_seconds_after_finished is not None:
        return model.spec.ttl_seconds_after_finished
    return default or None
