"""Decides what stays off the device, from numbers alone: before anything is tried."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kubediffusion.resources.diffusion_model import Measure, MemorySettings

_GIB = 2**30


class MemoryShortError(Exception):
    """A model does not fit, whatever its settings allow; the message has the numbers."""


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes that a model takes of its device's memory.

    Attributes:
        denoiser: Weights of the denoiser.
        denoiser_group: Those of them that are on the device at a time where its blocks come one after the other.
        text_encoders: Weights of the text encoders.
        text_encoder_layer: Those of them that are on the device at a time where layers come one after the other.
        rest: All other weights.
        step: What a step of one image takes beside weights.
        decode: What decoding an image takes beside weights.
        decode_tile: What decoding a tile takes.
    """

    denoiser: int
    denoiser_group: int
    text_encoders: int
    text_encoder_layer: int
    rest: int
    step: int
    decode: int
    decode_tile: int


@dataclass(frozen=True)
class MemoryPlan:
    """What is done to save memory.

    Attributes:
        text_encoders_offloaded: Text encoders stay in main memory.
        tiled: Images are decoded in tiles.
        groups_offloaded: The denoiser's blocks stay in main memory.
    """

    text_encoders_offloaded: bool = False
    tiled: bool = False
    groups_offloaded: bool = False

    @property
    def offloads(self) -> bool:
        """Whether any weights stay in main memory."""
        return self.text_encoders_offloaded or self.groups_offloaded

    @property
    def measures(self) -> list[str]:
        """Say what is done, each for itself."""
        said = [
            (self.text_encoders_offloaded, "text encoders stay in main memory"),
            (self.tiled, "images are decoded in tiles"),
            (self.groups_offloaded, "the denoiser's blocks stay in main memory"),
        ]
        return [words for done, words in said if done]

    @property
    def fields(self) -> tuple[str, ...]:
        """Name what is done, as ``spec.memory`` has it."""
        named = [
            (self.text_encoders_offloaded, "textEncoderOffload"),
            (self.tiled, "vaeTiling"),
            (self.groups_offloaded, "groupOffload"),
        ]
        return tuple(name for done, name in named if done)

    def weights(self, needs: MemoryNeeds) -> int:
        """Return the bytes of weights on the device."""
        denoiser = needs.denoiser_group if self.groups_offloaded else needs.denoiser
        encoders = needs.text_encoder_layer if self.text_encoders_offloaded else needs.text_encoders
        return denoiser + encoders + needs.rest

    def peak(self, needs: MemoryNeeds) -> int:
        """Return the bytes that the model takes at most: one image is stepped while another is decoded."""
        return self.weights(needs) + needs.step + (needs.decode_tile if self.tiled else needs.decode)


def plan_memory(needs: MemoryNeeds, available: int | None, settings: MemorySettings) -> MemoryPlan:
    """Choose the first plan that fits: each measure is added only where those before it do not suffice.

    Args:
        needs: What the model takes.
        available: Bytes of the device's memory that it may take; None where that is not limited.
        settings: What must be done, and what must not.

    Raises:
        MemoryShortError: None fits.
    """
    plan = MemoryPlan(
        text_encoders_offloaded=settings.text_encoder_offload is Measure.ALWAYS,
        tiled=settings.vae_tiling is Measure.ALWAYS,
        groups_offloaded=settings.group_offload is Measure.ALWAYS,
    )
    if available is None or plan.peak(needs) <= available:
        return plan
    steps = (
        (settings.text_encoder_offload, {"text_encoders_offloaded": True}),
        (settings.vae_tiling, {"tiled": True}),
        (settings.group_offload, {"groups_offloaded": True}),
    )
    for measure, change in steps:
        more = replace(plan, **change)
        # One that saves nothing of this model is not taken.
        if measure is Measure.AUTO and more.peak(needs) < plan.peak(needs):
            plan = more
            if plan.peak(needs) <= available:
                return plan
    raise MemoryShortError(_shortage(plan, needs, available, settings))


def _shortage(plan: MemoryPlan, needs: MemoryNeeds, available: int, settings: MemorySettings) -> str:
    fields = {
        "textEncoderOffload": settings.text_encoder_offload,
        "vaeTiling": settings.vae_tiling,
        "groupOffload": settings.group_offload,
    }
    forbidden = [f"spec.memory.{name}" for name, measure in fields.items() if measure is Measure.NEVER]
    decode = needs.decode_tile if plan.tiled else needs.decode
    return (
        f"the model needs {gib(plan.peak(needs))} of the device's memory (weights {gib(plan.weights(needs))}, a step "
        f"{gib(needs.step)}, decoding {gib(decode)}) and may take {gib(available)}; all its weights are "
        f"{gib(MemoryPlan().weights(needs))}. Ask for a device with more memory, or for weights in fewer bits by "
        "spec.quantization" + (f", or allow {' and '.join(forbidden)}" if forbidden else "")
    )


def gib(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"
