"""Makes images while a worker starts, and throws them away: what fails every job is found before any is bound."""

from __future__ import annotations

from dataclasses import replace

from kubediffusion.resources.diffusion_model import DiffusionModel, DiffusionModelSpec, JobDefaults
from kubediffusion.resources.failures import JobFailure
from kubediffusion.resources.generation_job import GenerationJobSpec
from kubediffusion.resources.objects import ObjectMeta
from kubediffusion.resources.parameters import resolve_parameters
from kubediffusion.worker.engine import (
    BadModelError,
    ClosedBatchMonitor,
    Engine,
    ImageId,
    ImageRequest,
    Outcome,
    SamplingParameters,
)

WARM_UP_STEPS = 2
"""Steps of an image that is tried: a scheduler's second step runs other code than its first."""

_SMALL = 256
"""Width and height in pixels of an image that is tried on a CPU: a multiple of what every family requires."""

# Some pipelines refuse an empty text.
_PROMPT = "a photo"


class _TrialMonitor(ClosedBatchMonitor):
    """Watches the images that are tried, and remembers how they failed.

    Args:
        most_steps: Steps after which they are dropped; None to let them end.
    """

    def __init__(self, most_steps: int | None = None) -> None:
        self.failure: JobFailure | None = None
        self._most_steps = most_steps
        self._steps = 0

    def wanted(self, _image_id: ImageId) -> bool:
        return self._most_steps is None or self._steps < self._most_steps

    def stepped(self, _image_id: ImageId, step: int, _total: int) -> None:
        self._steps = max(self._steps, step)

    def ended(self, _image_id: ImageId, outcome: Outcome) -> None:
        if isinstance(outcome, JobFailure):
            self.failure = outcome


def warm_up(engine: Engine, images: int = 1) -> None:
    """Make images of the pipeline's own size: the first call loads and chooses kernels, and shows that the model works.

    Args:
        engine: The engine.
        images: How many at once.

    Raises:
        BadModelError: No image could be made, as none of a job's could be.
    """
    sampling = SamplingParameters(steps=WARM_UP_STEPS, guidance=7.5)
    if (why := _failure(engine, sampling, images=images)) is not None:
        raise BadModelError(_made_no_image(engine, why))


def try_out(engine: Engine, spec: DiffusionModelSpec, *, small: bool) -> None:
    """Make the image of a job that names a prompt alone, in few steps.

    Args:
        engine: The engine.
        spec: The model's spec, whose defaults such a job gets.
        small: Whether the image may be small where the model names no size: on a CPU a large one takes minutes.

    Raises:
        BadModelError: No image could be made, as none of such a job's could be.
    """
    why = _failure_of_a_job(engine, spec, small=small)
    if why is None:
        return
    plain = spec.model_copy(update={"defaults": JobDefaults()})
    if spec.defaults == plain.defaults or _failure_of_a_job(engine, plain, small=small) is not None:
        raise BadModelError(_made_no_image(engine, why))
    raise BadModelError(
        f"with spec.defaults {engine.info.pipeline} made no image from text when it was tried, nor would it for a job "
        f"that names a prompt alone: {why.code}: {why.message}"
    )


def _failure_of_a_job(engine: Engine, spec: DiffusionModelSpec, *, small: bool) -> JobFailure | None:
    model = DiffusionModel(metadata=ObjectMeta(), spec=spec).with_pipeline(engine.info.facts)
    wanted = resolve_parameters(GenerationJobSpec(prompt=_PROMPT), model, seed=0)
    own = SamplingParameters.of(wanted)
    sizes = [own]
    if small and wanted.width is None and wanted.height is None and not _is_small(engine):
        # Some pipelines make a few sizes only.
        sizes.insert(0, replace(own, width=_SMALL, height=_SMALL))
    why: JobFailure | None = None
    for sampling in sizes:
        why = _failure(engine, replace(sampling, steps=min(sampling.steps, WARM_UP_STEPS)), wanted.negative_prompt)
        if why is None and sampling.steps > WARM_UP_STEPS:
            # The whole schedule, of which nothing but its beginning is computed.
            why = _failure(engine, sampling, wanted.negative_prompt, most_steps=1)
        if why is None:
            break
    return why


def _is_small(engine: Engine) -> bool:
    """Return whether the pipeline's own images are known to be no larger than a small one."""
    own = engine.info.facts.defaults if engine.info.facts is not None else None
    return own is not None and None not in {own.width, own.height} and max(own.width or 0, own.height or 0) <= _SMALL


def _failure(
    engine: Engine,
    sampling: SamplingParameters,
    negative_prompt: str | None = None,
    *,
    images: int = 1,
    most_steps: int | None = None,
) -> JobFailure | None:
    monitor = _TrialMonitor(most_steps)
    ids = [ImageId("", 0, index) for index in range(images)]
    engine.run(tuple(ImageRequest(image_id, _PROMPT, negative_prompt, 0, sampling) for image_id in ids), monitor)
    return monitor.failure


def _made_no_image(engine: Engine, why: JobFailure) -> str:
    return f"{engine.info.pipeline} made no image from text when it was tried: {why.code}: {why.message}"
