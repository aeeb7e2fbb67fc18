"""The tensors of a running batch, a row for each slot, and the step that is made of them all at once.

A row holds all that a slot's next step depends on; nothing is computed across rows. So images of different schedulers,
steps and guidance scales share a step, and a row may be moved, kept aside and brought back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kubediffusion.worker.pipeline import features
from kubediffusion.worker.pipeline.families import HIDDEN_STATES, Conditions
from kubediffusion.worker.pipeline.tables import DEPTH, Table, advanced
from kubediffusion.worker.pipeline.variants import WHOLE, Depth, Variant

TIMESTEP, SCALE, GUIDANCE, WEIGHTS = 0, 1, 2, 3
"""Columns of the control of a step; the weights are the last ``2 * DEPTH``."""

_IDLE = [0.0, 1.0, 1.0, 1.0, *[0.0] * (2 * DEPTH - 1)]
"""Control of an empty slot: its latents, zeros, stay what they are."""


@dataclass(frozen=True)
class Row:
    """What a slot holds of one image.

    Attributes:
        history: Latents, then model outputs, latest first: ``[2 * DEPTH, channels, height, width]``, float32.
        conditions: What the UNet is told.
        features: What its deep layers gave, where that is kept: ``[rows, channels, height, width]``.
    """

    history: torch.Tensor
    conditions: Conditions
    features: torch.Tensor | None = None

    def on_host(self) -> Row:
        """Give a copy in the host's memory."""
        kept = None if self.features is None else self.features.cpu()
        return Row(self.history.cpu(), {name: told.cpu() for name, told in self.conditions.items()}, kept)


def first_row(latents: torch.Tensor, conditions: Conditions) -> Row:
    """Give the row of an image that begins.

    Args:
        latents: The scaled noise: ``[1, channels, height, width]``.
        conditions: What the UNet is told.
    """
    history = latents.new_zeros(2 * DEPTH, *latents.shape[1:], dtype=torch.float32)
    history[0] = latents[0]
    return Row(history, conditions)


def control_row(table: Table, call: int, guidance: float) -> list[float]:
    """Give what a slot's next step needs to know: timestep, scale of the input, guidance scale and weights."""
    return [float(table.timesteps[call]), float(table.scales[call]), guidance, *table.weights[call].tolist()]


@dataclass(frozen=True)
class Work:
    """One step of the first slots.

    Attributes:
        function: What computes it.
        arguments: What it takes; tensors are the batch's own.
        store: Puts what it gives into the batch.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    store: Callable[[Any], object]

    def copies(self) -> tuple[Any, ...]:
        """Give copies of the arguments, for whoever computes while the batch goes on and writes into its own."""
        return tuple(_copied(argument) for argument in self.arguments)


def _copied(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        # With the same strides, of a part of the batch too: code is compiled for them.
        copy = torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype, device=argument.device)
        return copy.copy_(argument)
    if isinstance(argument, dict):
        return {name: _copied(part) for name, part in argument.items()}
    return argument


class Batch:
    """The slots of one batch.

    Args:
        unet: The denoiser.
        capacity: The most slots.
        example: A row, for the shapes and the device.
    """

    def __init__(self, unet: Any, capacity: int, example: Row) -> None:
        self.unet = unet
        # Never made anew: a captured graph knows their addresses.
        history = example.history
        self._history = history.new_zeros(capacity, *history.shape)
        self._control = history.new_tensor([_IDLE] * capacity)
        self._conditions = {
            name: condition.new_zeros(capacity, *condition.shape) for name, condition in example.conditions.items()
        }
        # Made when they are first needed.
        self._features: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self._history.device

    def enter(self, slot: int, row: Row) -> None:
        """Put an image into an empty slot."""
        self._history[slot] = row.history
        for name, condition in row.conditions.items():
            self._conditions[name][slot] = condition
        if row.features is not None:
            self._kept()[slot] = row.features

    def row(self, slot: int, *, features: bool = False) -> Row:
        """Give a copy of what a slot holds.

        Args:
            slot: The slot.
            features: Whether what the UNet's deep layers gave is still needed.
        """
        conditions = {name: told[slot].clone() for name, told in self._conditions.items()}
        kept = self._features[slot].clone() if features and self._features is not None else None
        return Row(self._history[slot].clone(), conditions, kept)

    def leave(self, slot: int) -> None:
        """Empty a slot."""
        # What an image without numbers left behind must not meet the next one's weights: zero times NaN is NaN.
        self._history[slot] = 0

    def clear(self) -> None:
        """Empty every slot."""
        self._history.zero_()

    def latents(self, slot: int) -> torch.Tensor:
        """Give a copy of a slot's latents: ``[1, channels, height, width]``."""
        return self._history[slot, :1].clone()

    def steer(self, rows: dict[int, list[float]], size: int) -> None:
        """Say what the next step does to each slot.

        Args:
            rows: :func:`control_row` by slot; the other slots are empty.
            size: Slots that are computed.
        """
        control = torch.tensor([rows.get(slot, _IDLE) for slot in range(size)])
        if self._control.is_cuda:
            # From pinned memory a copy waits for nobody; PyTorch keeps the memory until the device has read it.
            control = control.pin_memory()
        self._control[:size].copy_(control, non_blocking=True)

    def work(self, size: int, variant: Variant = WHOLE) -> Work:
        """Give the next step of the first ``size`` slots; its tensors are not copied."""
        rows = slice(-1, None) if variant.prompt_only else slice(None)
        history, control = self._history[:size], self._control[:size]
        conditions = {name: condition[:size, rows] for name, condition in self._conditions.items()}
        given = (self.unet, history, control, conditions)
        if variant.depth is Depth.WHOLE:
            return Work(denoise, given, history.copy_)
        kept = self._kept()[:size, rows]
        if variant.depth is Depth.SHALLOW:
            return Work(denoise_shallowly, (*given, kept), history.copy_)

        def store(made: tuple[torch.Tensor, torch.Tensor]) -> None:
            history.copy_(made[0])
            kept.copy_(made[1])

        return Work(denoise_keeping, given, store)

    def _kept(self) -> torch.Tensor:
        if self._features is None:
            prompts = self._conditions[HIDDEN_STATES]
            shape = features.features_shape(self.unet, self._history.shape)
            self._features = prompts.new_zeros(*prompts.shape[:2], *shape)
        return self._features


def denoise(unet: Any, history: torch.Tensor, control: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    """Make one step of a batch, and give the history after it.

    Args:
        unet: The denoiser.
        history: ``[batch, 2 * DEPTH, channels, height, width]``, float32.
        control: ``[batch, columns]``, float32.
        conditions: ``[batch, rows, ...]``, two rows with classifier-free guidance.
    """
    latents, timesteps, prompts, added = _given(history, control, conditions)
    output = unet(latents, timesteps, encoder_hidden_states=prompts, added_cond_kwargs=added, return_dict=False)[0]
    return _updated(history, control, output)


def denoise_keeping(
    unet: Any, history: torch.Tensor, control: torch.Tensor, conditions: Conditions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the same step, and give with the history what the UNet's deep layers gave, ``[batch, rows, ...]``."""
    output, kept = features.whole(unet, *_given(history, control, conditions))
    return _updated(history, control, output), kept.reshape(-1, len(history), *kept.shape[1:]).transpose(0, 1)


def denoise_shallowly(
    unet: Any, history: torch.Tensor, control: torch.Tensor, conditions: Conditions, kept: torch.Tensor
) -> torch.Tensor:
    """Make a step with what the deep layers gave in an earlier one, and give the history after it."""
    output = features.shallow(unet, *_given(history, control, conditions), kept.transpose(0, 1).flatten(0, 1))
    return _updated(history, control, output)


def _given(
    history: torch.Tensor, control: torch.Tensor, conditions: Conditions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor] | None]:
    """Give what the UNet takes: latents, timesteps, prompts, and more conditions where there are any."""
    rows = conditions[HIDDEN_STATES].shape[1]
    latents = history[:, 0] * control[:, SCALE].reshape(-1, 1, 1, 1)
    # All negative prompts, then all prompts.
    told = {name: condition.transpose(0, 1).flatten(0, 1) for name, condition in conditions.items()}
    prompts = told.pop(HIDDEN_STATES)
    return (
        torch.cat([latents] * rows).to(prompts.dtype),
        torch.cat([control[:, TIMESTEP]] * rows),
        prompts,
        told or None,
    )


def _updated(history: torch.Tensor, control: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Give the history after a step.

    Args:
        history: The one before.
        control: Of the step.
        output: The UNet's, once or twice as many as images.
    """
    output = output.float()
    if len(output) > len(history):
        without, given = output.chunk(2)
        output = without + control[:, GUIDANCE].reshape(-1, 1, 1, 1) * (given - without)
    return advanced(history, output, control[:, WEIGHTS:])
