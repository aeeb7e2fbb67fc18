"""The jobs that are bound to this worker, and how far each is.

:class:`Assignments` follows the watch; :class:`Assignment` is one binding of one job (an attempt), from the event that
shows it until its outcome is reported or the job is taken away. Nothing here does I/O.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from kubediffusion.resources.adapters import AppliedAdapter, JobAdapter
from kubediffusion.resources.diffusion_model import DiffusionModel, DiffusionModelSpec
from kubediffusion.resources.generation_job import MAX_SEED, GenerationJob, Image, JobProgress, Parameters
from kubediffusion.resources.model_source import ModelSource
from kubediffusion.resources.parameters import resolve_again, resolve_parameters
from kubediffusion.resources.transitions import BOUND
from kubediffusion.worker.engine import ImageId, ImageOutput, ImagePlan, ImageRequest, InputImages, SamplingParameters
from kubediffusion.worker.engine.adapters import ImageAdapter
from kubediffusion.worker.engine.batching import Candidate


@dataclass(frozen=True)
class Binding:
    """Identifies one binding of one job; every report is fenced by it.

    Attributes:
        uid: UID of the job.
        attempt: ``status.attempt`` of the binding.
    """

    uid: str
    attempt: int


class Cancellable(Protocol):
    """Work that can be stopped, for example an :class:`asyncio.Task`."""

    def cancel(self) -> object:
        """Stop it."""


@dataclass
class Span:
    """Seconds on the monotonic clock in which the engine had images of a job."""

    began: float
    ended: float


@dataclass(eq=False)
class Assignment:
    """One binding of one job to this worker.

    Attributes:
        job: The job as last seen.
        binding: Fences its reports.
        parameters: The recipe, as the operator resolved it, with the defaults of this pipeline.
        inputs: The images that it is made of, once they are fetched; None before, and where there are none.
        fetches_inputs: They are being fetched.
        adapters: What is added to the model's weights for it, once it is loaded; None before, and where there is none.
        loads_adapters: They are being loaded.
        taken: How many of its images the engine has been given.
        steps: Denoising steps done, by index of the image. Written by the engine's thread.
        outputs: What came out, by index, without the pixels.
        images: What storage has confirmed, by index.
        warnings: Warnings for ``status.warnings``, in order, each once.
        start_time: When the engine was given the first image.
        spans: When the engine had its images.
        dropped: The job was taken away: no more work, no report. Read by the engine's thread.
        finishing: The outcome is being reported: the report itself makes the job leave the watch.
        left_watch: The job left the watch while its outcome was reported.
        tasks: Work on the job outside the engine; cancelled when the job is dropped.
    """

    job: GenerationJob
    binding: Binding
    parameters: Parameters
    inputs: InputImages | None = None
    fetches_inputs: bool = False
    adapters: tuple[ImageAdapter, ...] | None = None
    loads_adapters: bool = False
    taken: int = 0
    steps: dict[int, int] = field(default_factory=dict)
    outputs: dict[int, ImageOutput] = field(default_factory=dict)
    images: dict[int, Image] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    start_time: dt.datetime | None = None
    spans: list[Span] = field(default_factory=list)
    dropped: bool = False
    finishing: bool = False
    left_watch: bool = False
    tasks: set[Cancellable] = field(default_factory=set)

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.job.name

    @property
    def remaining(self) -> int:
        """Number of images that the engine has not been given."""
        return self.parameters.num_images - self.taken

    @property
    def awaits_inputs(self) -> bool:
        """Whether images that it is made of are not here yet."""
        return bool(self.parameters.inputs) and self.inputs is None

    @property
    def awaits_adapters(self) -> bool:
        """Whether adapters that it names are not here yet."""
        return bool(self.job.spec.adapters) and self.adapters is None

    def adapter_scale(self, name: str) -> float | None:
        """Return how strongly an adapter counts, by the recipe, else by the job; None where neither says."""
        recipe: tuple[AppliedAdapter | JobAdapter, ...] = self.parameters.adapters or ()
        named = [*recipe, *(self.job.spec.adapters or ())]
        return next((given.scale for given in named if given.name == name and given.scale is not None), None)

    def set_adapters(self, adapters: tuple[ImageAdapter, ...], applied: tuple[AppliedAdapter, ...]) -> None:
        """Give the job its adapters, and put them into its recipe with their digests."""
        self.adapters = adapters
        self.parameters = self.parameters.model_copy(update={"adapters": applied})

    @property
    def computing(self) -> bool:
        """Whether the engine has images of it, or will get more."""
        return bool(self.spans) and len(self.outputs) < self.parameters.num_images

    @property
    def inference(self) -> float:
        """Seconds in the engine."""
        return sum(span.ended - span.began for span in self.spans)

    @property
    def sampling(self) -> SamplingParameters:
        """How its images are computed."""
        return SamplingParameters.of(self.parameters)

    @property
    def progress(self) -> JobProgress:
        """Denoising steps done of an image, averaged over the job's images."""
        total = self.parameters.num_inference_steps
        done = sum(self.steps.values())
        return JobProgress.of(min(done // self.parameters.num_images, total), total)

    def candidate(self, plan: ImagePlan) -> Candidate[str]:
        """Return the job as batching sees it.

        Args:
            plan: How the engine would run it.
        """
        created = self.job.metadata.creation_timestamp or dt.datetime.fromtimestamp(0, dt.UTC)
        return Candidate(
            key=self.binding.uid,
            plan=plan,
            first=self.taken,
            images=self.parameters.num_images,
            priority=self.job.spec.priority or 0,
            created=created,
            name=self.name,
            deterministic=self.parameters.deterministic,
        )

    def take_requests(self, count: int, now: dt.datetime, clock: float) -> tuple[ImageRequest, ...]:
        """Return requests for the next images, and count them as given to the engine.

        Args:
            count: How many, at most ``remaining``.
            now: Wall-clock time, for the status.
            clock: Monotonic seconds, for durations.
        """
        self.start_time = self.start_time or now
        if self.taken == len(self.outputs):
            # Otherwise the engine has others of its images, and their time goes on.
            self.spans.append(Span(clock, clock))
        first, self.taken = self.taken, self.taken + count
        # The engine's thread replaces these values; only the event loop adds keys.
        self.steps |= dict.fromkeys(range(first, self.taken), 0)
        return tuple(self.request(index) for index in range(first, self.taken))

    def request(self, index: int) -> ImageRequest:
        """Ask the engine for one of its images."""
        return ImageRequest(
            id=ImageId(self.binding.uid, self.binding.attempt, index),
            prompt=self.job.spec.prompt,
            negative_prompt=self.parameters.negative_prompt,
            seed=self.seed(index),
            sampling=self.sampling,
            inputs=self.inputs,
            adapters=self.adapters or (),
        )

    def seed(self, index: int) -> int:
        """Return the seed of an image: the job's plus the index; it wraps at the largest that status can hold."""
        return (self.parameters.seed + index) % (MAX_SEED + 1)

    def record_output(self, index: int, output: ImageOutput, clock: float) -> None:
        """Record an image that the engine made, without its pixels.

        Args:
            index: The image within the job.
            output: The image.
            clock: Monotonic seconds.
        """
        self.outputs[index] = replace(output, rgb=b"")
        self.steps[index] = self.parameters.num_inference_steps
        self.spans[-1].ended = clock
        self.warnings += [warning for warning in output.warnings if warning not in self.warnings]

    def update_job(self, job: GenerationJob) -> None:
        """Replace the job by a newer state of it; an older one, of a watch behind this worker's writes, is ignored."""
        if job.metadata.version >= self.job.metadata.version:
            self.job = job

    def drop(self) -> None:
        """Mark the job as taken away, and cancel the work on it."""
        self.dropped = True
        self.cancel_tasks()

    def cancel_tasks(self) -> None:
        """Cancel the work on the job outside the engine."""
        # Each once: a second cancel would end the wait for an upload that has begun, and with it what is done after.
        while self.tasks:
            self.tasks.pop().cancel()


class Assignments:
    """All jobs bound to this worker, as the watch shows them.

    Args:
        worker: Name of this worker's Pod.
        model: The model that it holds, with what is known of its pipeline; None for one of which nothing is known.
    """

    def __init__(self, worker: str, model: DiffusionModel | None = None) -> None:
        self._worker = worker
        self._model = model or DiffusionModel(spec=DiffusionModelSpec(source=ModelSource()))
        self._live: dict[str, Assignment] = {}
        # The last attempt that ended here, by UID: a late event of such a binding must not start it again.
        self._finished: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Assignment]:
        return iter(list(self._live.values()))

    def get(self, uid: str) -> Assignment | None:
        """Return the live assignment of a job, by its UID; None without one."""
        return self._live.get(uid)

    def observe(self, job: GenerationJob, gone: bool) -> Assignment | None:
        """Apply one event of the watch, and return the assignment that it dropped, if any.

        Args:
            job: The job as it is now.
            gone: The job is deleted, or no longer bound to this worker.
        """
        dropped = None
        known = self._live.get(job.uid)
        ours = not gone and self._is_ours(job)
        if known is not None and not ours and known.finishing:
            # Most likely the effect of the report. If it is not, the report's fence finds out.
            known.left_watch = gone
        elif known is not None and (not ours or job.status.attempt != known.binding.attempt):
            del self._live[job.uid]
            known.drop()
            known, dropped = None, known
        if gone:
            self._finished.pop(job.uid, None)
        if ours:
            if known is not None:
                known.update_job(job)
            elif job.status.attempt > self._finished.get(job.uid, -1):
                self._live[job.uid] = _assignment(job, self._model)
        return dropped

    def remove(self, assignment: Assignment) -> None:
        """Remove an assignment that ended: reported, or found to be another worker's."""
        uid = assignment.binding.uid
        if self._live.get(uid) is assignment:
            del self._live[uid]
            if not assignment.left_watch:
                self._finished[uid] = assignment.binding.attempt

    def _is_ours(self, job: GenerationJob) -> bool:
        return (
            job.status.worker == self._worker
            and job.status.phase in BOUND
            and not job.spec.cancel
            and job.metadata.deletion_timestamp is None
        )


def _assignment(job: GenerationJob, model: DiffusionModel) -> Assignment:
    parameters = job.status.parameters
    if parameters is None:
        # The operator writes them with the binding; another binder may not know. Then the job's own spec counts, and a
        # job that names no seed runs with 0, in place of the random one that the operator draws.
        parameters = resolve_parameters(job.spec, model, seed=0)
    # The operator may have bound the first job before it was told of the pipeline.
    parameters = resolve_again(parameters, job.spec, model)
    return Assignment(job=job, binding=Binding(job.uid, job.status.attempt), parameters=parameters)
