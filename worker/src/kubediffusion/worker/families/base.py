"""What a family of pipelines tells the engine: all that a pipeline's ``__call__`` does except its loop.

A family is one module. It repeats, for one image, how the pipeline encodes prompts, begins from noise, sets up its
scheduler, calls its denoiser and turns latents into the VAE's. The loop, the noise scheduler's update and the batch are
the engine's. ``tests/unit/worker/families`` compares each family with its pipeline's own call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImageRequest
from kubediffusion.worker.families.colors import LatentColors
from kubediffusion.worker.families.row_layout import RowLayout
from kubediffusion.worker.prompts import TextEncoder, cut_warnings

Conditioning = dict[str, torch.Tensor]
"""Tensors that an image's conditioning consists of, by a name that the family chooses: ``[rows, ...]`` for one image,
``[images, rows, ...]`` in a batch. With classifier-free guidance the rows are the negative prompt's and the prompt's,
else the prompt's alone."""

GraphFactory = Callable[[Callable[[Any, torch.Tensor], torch.Tensor], Any], Callable[[torch.Tensor], torch.Tensor]]
"""Turns a function of a module and a tensor, and that module, into a function of the tensor that runs from graphs."""

_WITH_FRAMES = 5
"""Dimensions of latents of a VAE that video models share: image, channel, frame, height, width."""

_STRONG = 2.0
"""A guidance scale that is above every family's threshold."""


@dataclass(frozen=True)
class Defaults:
    """What an image gets whose job and model name nothing else.

    Attributes:
        steps: Denoising steps.
        guidance: Guidance scale.
        width: Pixels; None where the pipeline's configuration says it.
        height: Pixels; None where the pipeline's configuration says it.
    """

    steps: int
    guidance: float
    width: int | None = None
    height: int | None = None


class ModelFamily:
    """One family of pipelines. A family overrides what differs from the usual.

    Args:
        pipeline: The diffusers pipeline, on its device.

    Attributes:
        pipelines: Names of the diffusers classes; a subclass of one has a call of its own and does not match.
        component: Name of the denoiser among the pipeline's components.
        dtype: Numbers that the weights are held in on a GPU where the model says ``auto``.
        defaults: Steps, guidance and size of an image whose job names none.
        distilled: The same for a model that is distilled to few steps; None where the family has none.
        from_start: Whether the pipeline's call tells the scheduler that it begins at the first step.
        guided_above: Guidance scale above which there is classifier-free guidance.
        upcasts: Whether the pipeline's call decodes in float32 where the VAE's configuration says so.
        takes_negative: Whether guidance is by the negative prompt; else it is by the empty one, whatever is given.
        weighs_prompts: Whether it heeds ``promptWeighting``.
        calls_denoiser: Whether :meth:`denoise` calls the denoiser as a whole; else it calls the denoiser's modules.
        by_blocks: Whether the denoiser is compiled block by block, as a transformer's blocks are alike.
    """

    pipelines: ClassVar[tuple[str, ...]] = ()
    component: ClassVar[str] = "transformer"
    dtype: ClassVar[str] = "bfloat16"
    defaults: ClassVar[Defaults] = Defaults(28, 3.5)
    distilled: ClassVar[Defaults | None] = None
    from_start: ClassVar[bool] = True
    guided_above: ClassVar[int] = 1
    upcasts: ClassVar[bool] = False
    takes_negative: ClassVar[bool] = True
    weighs_prompts: ClassVar[bool] = False
    calls_denoiser: ClassVar[bool] = True
    by_blocks: ClassVar[bool] = True

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.denoiser: Any = getattr(pipeline, self.component)
        self.denoiser_dtype: torch.dtype = self.denoiser.dtype
        self._colors: LatentColors | None = None
        self._variant = ""

    def __repr__(self) -> str:
        # Compiled code is named by it, so it says nothing of this process.
        return type(self).__qualname__ + self._variant

    def with_denoiser(self, denoiser: Any, variant: str) -> Self:
        """Return the same family with another denoiser, whose layers differ.

        Args:
            denoiser: Of the same class.
            variant: Names what differs, for compiled code.
        """
        other = copy.copy(self)
        other.denoiser, other._variant = denoiser, f" ({variant})"  # noqa: SLF001 - of the same class
        return other

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        device: torch.device = self.pipeline.device
        return device

    def use_graphs(self, _graphed: GraphFactory) -> None:
        """Have what is small and often called, a text encoder for example, run from CUDA graphs; by default nothing."""
        return

    @classmethod
    def mismatch(cls, _pipeline: Any) -> str | None:
        """Say why a pipeline of one of the family's classes cannot be stepped; None when it can."""
        return None

    def is_distilled(self) -> bool:
        """Return whether the model is distilled to few steps."""
        return False

    def own_defaults(self) -> Defaults:
        """Return steps, guidance and size of an image whose job names none."""
        return self.distilled if self.distilled is not None and self.is_distilled() else self.defaults

    # What decides the batch.

    def guidance(self, request: ImageRequest) -> GuidanceKind:
        """Return what ``guidanceScale`` does to an image: by default, classifier-free guidance."""
        return GuidanceKind.CFG if request.sampling.guidance > self.guided_above else GuidanceKind.NONE

    def ignored(self, request: ImageRequest) -> list[str]:
        """Return a warning for each field of a request that has no effect on its image."""
        kind, name = self.guidance(request), type(self.pipeline).__name__
        strong = replace(request, negative_prompt="", sampling=replace(request.sampling, guidance=_STRONG))
        takes_guidance = self.guidance(strong) is GuidanceKind.CFG
        warnings = []
        interval = (
            request.sampling.acceleration is not None and request.sampling.acceleration.guidance_interval is not None
        )
        if interval and kind is not GuidanceKind.CFG:
            why = f"guidanceScale is not above {self.guided_above}" if takes_guidance else f"{name} computes one row"
            warnings.append(f"acceleration.guidanceInterval has no effect: {why}")
        if request.negative_prompt and (kind is not GuidanceKind.CFG or not self.takes_negative):
            weak = takes_guidance and self.takes_negative
            why = f"guidanceScale is not above {self.guided_above}" if weak else f"{name} does not heed it"
            warnings.append(f"negativePrompt has no effect: {why}")
        if kind is GuidanceKind.NONE and request.sampling.guidance > self.guided_above:
            why = "there is no negativePrompt" if takes_guidance else f"this {name} takes none"
            warnings.append(f"guidanceScale has no effect: {why}")
        if request.sampling.prompt_weighting and not self.weighs_prompts:
            warnings.append(f"promptWeighting has no effect: {name} takes prompts as they are")
        return warnings

    def cut(self, request: ImageRequest, encoders: Sequence[TextEncoder]) -> list[str]:
        """Return a warning for each prompt of which a part is not encoded.

        Args:
            request: The image.
            encoders: The pipeline's text encoders.
        """
        return cut_warnings(request, encoders)

    def text_length(self, _request: ImageRequest, _guidance: GuidanceKind) -> int:
        """Return how many tokens the batch holds for each prompt; 0 where all prompts have the same length.

        Called from any thread, and often: what it needs is cached.
        """
        return 0

    def key(self, request: ImageRequest) -> BatchKey:
        """Return what an image is computed with: its own size, what guides it, how much text it has."""
        sampling = request.sampling
        own = self.own_size() or (sampling.width or sampling.height or 0, sampling.height or sampling.width or 0)
        guidance = self.guidance(request)
        return BatchKey(
            width=sampling.width or own[0],
            height=sampling.height or own[1],
            guidance=guidance,
            deterministic=sampling.deterministic,
            text_length=self.text_length(request, guidance),
        )

    def batch_key(self, key: BatchKey) -> BatchKey:
        """Return what an image's batch shares, by the image's own key: by default all of it.

        A denoiser that takes images of several sizes side by side leaves the size out: its key is then that of one
        size that stands for them all, and :meth:`encode` tells :meth:`denoise` each image's own. What begins and ends
        an image (:meth:`start`, :meth:`schedule`, :meth:`vae_input`) is given its own key, what steps the batch
        (:meth:`shared`, :meth:`predict`, :meth:`denoise`) that of the batch.
        """
        return key

    def own_size(self) -> tuple[int, int] | None:
        """Return the width and height in pixels of an image whose job names neither; None where not known."""
        if self.defaults.width is not None and self.defaults.height is not None:
            return self.defaults.width, self.defaults.height
        return own_size(self.pipeline)

    def size_multiple(self) -> int:
        """Return the number of pixels that both sides must be multiples of; 1 where the pipeline's call rounds them."""
        return 1

    def size_grid(self) -> int | None:
        """Return the number of pixels that both sides should be multiples of; None where that is not known."""
        return self.size_multiple()

    def check(self, key: BatchKey) -> None:
        """Refuse images that the pipeline's own call refuses.

        Raises:
            JobFailure: A side is not a multiple of :meth:`size_multiple`.
        """
        multiple = self.size_multiple()
        if key.width % multiple or key.height % multiple:
            raise JobFailure(
                ErrorCode.PIPELINE_FAILED,
                f"width and height must be multiples of {multiple} for {type(self.pipeline).__name__}, "
                f"not {key.width} and {key.height}",
            )

    # One image, before its first step.

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts, and what else the denoiser is told of it: ``[rows, ...]`` each."""
        raise NotImplementedError

    def start(self, request: ImageRequest, key: BatchKey) -> torch.Tensor:
        """Make the noise that an image begins from, ``[1, ...]``, on the CPU, in the numbers of the pipeline's call.

        The engine multiplies it by the scheduler's initial sigma.
        """
        raise NotImplementedError

    def schedule(self, _scheduler: Any, _key: BatchKey, steps: int) -> dict[str, Any]:
        """Return the arguments of the noise scheduler's ``set_timesteps``."""
        return {"num_inference_steps": steps}

    # All images of a batch, in each step.

    def shared(self, _key: BatchKey) -> Conditioning:
        """Return the inputs of the denoiser that all images of a key share, made once: rotary ids, for example."""
        return {}

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        guidance: torch.Tensor,
        slot: Conditioning,
        shared: Conditioning,
        key: BatchKey,
    ) -> torch.Tensor:
        """Predict the model output of each image, guided: what the noise scheduler's ``step`` is given.

        Traceable: no branch on a tensor's values, no copy to the host.

        Args:
            latents: ``[images, ...]``, float32, scaled as the scheduler scales the model's input.
            timesteps: ``[images]``, float32.
            guidance: Guidance scales, ``[images]``, float32.
            slot: What :meth:`encode` gave, ``[images, rows, ...]`` each.
            shared: What :meth:`shared` gave.
            key: What all images share.

        Returns:
            ``[images, ...]``, float32.
        """
        rows = rows_of(slot)
        output = self.denoise(
            torch.cat([latents] * rows).to(self.denoiser_dtype),
            torch.cat([timesteps] * rows),
            torch.cat([guidance] * rows),
            folded(slot),
            shared,
            key,
        ).float()
        if rows == 1:
            return output
        without, given = output.chunk(2)
        return self.guide(without, given, per_image(guidance, given))

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        guidance: torch.Tensor,
        told: Conditioning,
        shared: Conditioning,
        key: BatchKey,
    ) -> torch.Tensor:
        """Call the denoiser: once, for all rows, negative prompts first.

        Args:
            latents: ``[rows, ...]``, in the denoiser's numbers.
            timesteps: ``[rows]``, float32.
            guidance: Guidance scales, ``[rows]``, float32, for a denoiser that is told them.
            told: What :meth:`encode` gave, ``[rows, ...]`` each.
            shared: What :meth:`shared` gave.
            key: What all images share.

        Returns:
            ``[rows, ...]``.
        """
        raise NotImplementedError

    def guide(self, without: torch.Tensor, given: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        """Combine the outputs for the negative prompt and for the prompt (https://arxiv.org/abs/2207.12598).

        Args:
            without: For the negative prompts, ``[images, ...]``, float32.
            given: For the prompts, ``[images, ...]``, float32.
            guidance: Guidance scales, of a shape that multiplies them.
        """
        return without + guidance * (given - without)

    # One image, after its last step.

    def vae_input(self, latents: torch.Tensor, _key: BatchKey) -> torch.Tensor:
        """Turn an image's latents, ``[1, ...]``, float32, into what its VAE decodes."""
        config = self.pipeline.vae.config
        scaled: torch.Tensor = latents / config.scaling_factor
        shift = getattr(config, "shift_factor", None)
        return scaled if shift is None else scaled + shift

    def preview(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:
        """Return what an image will look like, roughly: ``[height, width, 3]`` by latents, float32, 0 to 1.

        The first call of a family encodes an image of 256 by 256 pixels: see :mod:`.colors`.

        Args:
            latents: What the image is expected to end with, in the denoiser's scale: ``[1, ...]``, float32.
            key: The image's own: its size.
        """
        scaled = self.vae_input(latents, key)
        if self._colors is None:
            self._colors = LatentColors.fit(self.pipeline.vae, frames=scaled.dim() == _WITH_FRAMES)
        return self._colors.of(scaled)

    # What only some families can do.

    def takes_images(self) -> bool:
        """Return whether images may begin from an image in a slot: see :mod:`.input_images`."""
        return False

    def row_layout(self, _layer: str) -> RowLayout:
        """Return where a layer of the denoiser, by its name, has a step's rows: adapters differ from row to row."""
        return RowLayout.FIRST

    def caches_features(self) -> bool:
        """Return whether steps may reuse the output of the denoiser's deep layers: see :mod:`.unet`."""
        return False


def own_size(pipeline: Any) -> tuple[int, int] | None:
    """Return the width and height in pixels of a pipeline's images by default; None where no common attribute says."""
    scale = getattr(pipeline, "vae_scale_factor", None)
    size = getattr(pipeline, "default_sample_size", None)
    if size is None:
        denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        size = getattr(getattr(denoiser, "config", None), "sample_size", None)
    if scale is None or size is None:
        return None
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(width * scale), int(height * scale)


def noise(shape: Sequence[int], seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Make an image's noise on the CPU, so that a seed gives the same on every device: ``[1, *shape]``."""
    return torch.randn((1, *shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)


def rows_of(slot: Conditioning) -> int:
    """Return the number of rows of an image in conditioning of shape ``[images, rows, ...]``."""
    return next(iter(slot.values())).shape[1]


def folded(slot: Conditioning) -> Conditioning:
    """Fold ``[images, rows, ...]`` into ``[rows * images, ...]``: all negative prompts, then all prompts."""
    return {name: told.transpose(0, 1).flatten(0, 1) for name, told in slot.items()}


def per_image(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shape ``[images]`` so that it multiplies a tensor of shape ``[images, ...]``."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))
