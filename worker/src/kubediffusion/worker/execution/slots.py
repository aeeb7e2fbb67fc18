"""The slots of a running batch, as tensors with a row for each, and the step that is made of them all at once.

A row holds all that a slot's next step depends on; nothing is computed across rows. So images of different schedulers,
steps and guidance scales share a step, and a row may be moved, kept aside and brought back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from kubediffusion.worker.engine import BatchKey
from kubediffusion.worker.engine.forward_mode import FULL, Features, ForwardMode
from kubediffusion.worker.execution.adapters.slots import AdapterSlots
from kubediffusion.worker.execution.adapters.weights import Layers
from kubediffusion.worker.execution.coefficients import DEPTH, SchedulerCoefficients, advanced
from kubediffusion.worker.families.base import Conditioning, per_image

TIMESTEP, SCALE, GUIDANCE, WEIGHTS = 0, 1, 2, 3
"""Columns of the control of a step; the weights are the last ``2 * DEPTH``."""

_IDLE = [0.0, 1.0, 1.0, 1.0, *[0.0] * (2 * DEPTH - 1)]
"""Control of an empty slot: its latents, zeros, stay what they are."""


@dataclass(frozen=True)
class SlotState:
    """What a slot holds of one image.

    Attributes:
        history: Latents, then model outputs, latest first: ``[2 * DEPTH, ...]``, float32.
        conditions: What the denoiser is told: ``[rows, ...]`` each.
        features: What its deep layers gave, where that is kept: ``[rows, channels, height, width]``.
        added: What its adapters add to the denoiser's layers, on the device; images of one job share it.
    """

    history: torch.Tensor
    conditions: Conditioning
    features: torch.Tensor | None = None
    added: Layers = field(default_factory=dict)

    def on_host(self) -> SlotState:
        """Return a copy in the host's memory; what adapters add stays where it is, as others may share it."""
        kept = None if self.features is None else self.features.cpu()
        conditions = {name: told.cpu() for name, told in self.conditions.items()}
        return SlotState(self.history.cpu(), conditions, kept, self.added)


def first_row(latents: torch.Tensor, conditions: Conditioning, added: Layers | None = None) -> SlotState:
    """Return the state of an image before its first step.

    Args:
        latents: The scaled noise: ``[1, ...]``.
        conditions: What the denoiser is told: ``[rows, ...]`` each.
        added: What its adapters add to the denoiser's layers; None for nothing.
    """
    history = latents.new_zeros(2 * DEPTH, *latents.shape[1:], dtype=torch.float32)
    history[0] = latents[0]
    return SlotState(history, conditions, added=added or {})


def control_row(coefficients: SchedulerCoefficients, call: int, guidance: float) -> list[float]:
    """Return the scalars of a slot's next step: timestep, scale of the input, guidance scale and weights."""
    timestep, scale = float(coefficients.timesteps[call]), float(coefficients.scales[call])
    return [timestep, scale, guidance, *coefficients.weights[call].tolist()]


@dataclass(frozen=True)
class InputBatch:
    """One step of the first slots.

    Attributes:
        function: What computes it.
        arguments: What it takes; tensors are the batch's own.
        store: Puts what it gives into the batch.
        by_blocks: Whether it is compiled block by block.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    store: Callable[[Any], object]
    by_blocks: bool = False

    def copies(self) -> tuple[Any, ...]:
        """Return copies of the arguments, to compute with while the batch goes on and writes into its own."""
        return tuple(_copied(argument) for argument in self.arguments)


def _copied(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        # With the same strides, of a part of the batch too, and of the same mode: code is compiled for them.
        with torch.inference_mode(argument.is_inference()):
            copy = torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype, device=argument.device)
        return copy.copy_(argument)
    if isinstance(argument, dict):
        return {name: _copied(part) for name, part in argument.items()}
    return argument


class SlotTensors:
    """The slots of one batch.

    Args:
        family: Predicts the model output.
        key: What all images share.
        capacity: The most slots.
        example: A row, for the shapes and the device.
        adapter_slots: Where its images' adapters are put before a step; None where none has any.
    """

    def __init__(
        self,
        family: Any,
        key: BatchKey,
        capacity: int,
        example: SlotState,
        adapter_slots: AdapterSlots | None = None,
    ) -> None:
        self._family = family
        self._adapter_slots = adapter_slots
        self._added: dict[int, Layers] = {}
        self._key = key
        # Never made anew: a captured graph knows their addresses.
        history = example.history
        self._history = history.new_zeros(capacity, *history.shape)
        self._control = history.new_tensor([_IDLE] * capacity)
        self._conditions = {
            name: condition.new_zeros(capacity, *condition.shape) for name, condition in example.conditions.items()
        }
        self._shared = family.shared(key)
        # Made when they are first needed.
        self._features: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self._history.device

    def enter(self, slot: int, row: SlotState) -> None:
        """Put an image into an empty slot."""
        self._history[slot] = row.history
        for name, condition in row.conditions.items():
            self._conditions[name][slot] = condition
        if row.features is not None:
            self._kept()[slot] = row.features
        self._added[slot] = row.added

    def row(self, slot: int, *, features: bool = False) -> SlotState:
        """Return a copy of the state that a slot holds.

        Args:
            slot: The slot.
            features: Whether what the denoiser's deep layers gave is still needed.
        """
        conditions = {name: told[slot].clone() for name, told in self._conditions.items()}
        kept = self._features[slot].clone() if features and self._features is not None else None
        return SlotState(self._history[slot].clone(), conditions, kept, self._added.get(slot, {}))

    def fill(self, value: float) -> None:
        """Put a number into the latents and the past outputs of every slot."""
        self._history.fill_(value)

    def leave(self, slot: int) -> None:
        """Empty a slot whose image has left, so that nothing of it meets the next one."""
        # What an image without numbers left behind must not meet the next one's weights: zero times NaN is NaN.
        self._history[slot] = 0
        self._added.pop(slot, None)

    def clear(self) -> None:
        """Empty every slot."""
        self.fill(0)
        self._added.clear()

    def put_adapters(self, size: int) -> int:
        """Put the adapters of the first ``size`` slots' images where the next step finds them.

        Returns:
            The version of :class:`.AdapterSlots` that the step belongs to; 0 where no image has adapters.
        """
        added = {slot: layers for slot, layers in self._added.items() if slot < size}
        if self._adapter_slots is None or not any(added.values()):
            return 0
        self._adapter_slots.fill(added)
        return self._adapter_slots.version

    def latents(self, slot: int) -> torch.Tensor:
        """Return a copy of a slot's latents: ``[1, ...]``."""
        return self._history[slot, :1].clone()

    def estimate(self, slot: int, latest: float, output: float) -> torch.Tensor:
        """Return what a slot's latents would be at the end, by its last step alone: ``[1, ...]``.

        Args:
            slot: The slot, after a step.
            latest: Weight of the latents before the step.
            output: Weight of the model output of the step.
        """
        history = self._history[slot]
        return latest * history[1:2] + output * history[DEPTH : DEPTH + 1]

    def steer(self, rows: dict[int, list[float]], size: int) -> None:
        """Set what the next step does to each slot.

        Args:
            rows: :func:`control_row` by slot; the other slots are empty.
            size: Slots that are computed.
        """
        control = torch.tensor([rows.get(slot, _IDLE) for slot in range(size)])
        if self._control.is_cuda:
            # From pinned memory a copy waits for nobody; PyTorch keeps the memory until the device has read it.
            control = control.pin_memory()
        self._control[:size].copy_(control, non_blocking=True)

    def input_batch(self, size: int, mode: ForwardMode = FULL) -> InputBatch:
        """Gather the next step of the first ``size`` slots; its tensors are not copied."""
        rows = slice(-1, None) if mode.prompt_only else slice(None)
        history, control = self._history[:size], self._control[:size]
        conditions = {name: condition[:size, rows] for name, condition in self._conditions.items()}
        family = self._family
        if mode.adapters and self._adapter_slots is not None:
            family = self._adapter_slots.family(size, next(iter(conditions.values())).shape[1])
        given = (family, history, control, conditions)
        if mode.features is Features.FULL:
            return InputBatch(step_full, (*given, self._shared, self._key), history.copy_, family.by_blocks)
        kept = self._kept()[:size, rows]
        if mode.features is Features.REUSE:
            return InputBatch(step_reuse, (*given, kept), history.copy_, family.by_blocks)

        def store(made: tuple[torch.Tensor, torch.Tensor]) -> None:
            history.copy_(made[0])
            kept.copy_(made[1])

        return InputBatch(step_refresh, given, store, family.by_blocks)

    def _kept(self) -> torch.Tensor:
        if self._features is None:
            rows = next(iter(self._conditions.values()))
            shape = self._family.features_shape(self._history.shape)
            self._features = rows.new_zeros(*rows.shape[:2], *shape)
        return self._features


def step_full(
    family: Any,
    history: torch.Tensor,
    control: torch.Tensor,
    slot: Conditioning,
    shared: Conditioning,
    key: BatchKey,
) -> torch.Tensor:
    """Make one step of a batch.

    Args:
        family: Predicts the model output.
        history: Latents, latest first, then model outputs: ``[images, 2 * DEPTH, ...]``, float32.
        control: ``[images, columns]``, float32.
        slot: Conditioning, ``[images, rows, ...]`` each.
        shared: What all images are told alike.
        key: What all images share.

    Returns:
        The history after the step, of the same shape.
    """
    output = family.predict(*_inputs(history, control), slot, shared, key)
    return advanced(history, output, control[:, WEIGHTS:])


def step_refresh(
    family: Any, history: torch.Tensor, control: torch.Tensor, slot: Conditioning
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one step, and return the history after it and the deep layers' features: ``[images, rows, ...]``."""
    output, kept = family.predict_refresh(*_inputs(history, control), slot)
    return advanced(history, output, control[:, WEIGHTS:]), kept


def step_reuse(
    family: Any, history: torch.Tensor, control: torch.Tensor, slot: Conditioning, kept: torch.Tensor
) -> torch.Tensor:
    """Make one step with the deep layers' features of an earlier step, and return the history after it."""
    output = family.predict_reuse(*_inputs(history, control), slot, kept)
    return advanced(history, output, control[:, WEIGHTS:])


def _inputs(history: torch.Tensor, control: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the scaled latents, the timesteps and the guidance scales of a step."""
    latents = history[:, 0]
    return latents * per_image(control[:, SCALE], latents), control[:, TIMESTEP], control[:, GUIDANCE]
