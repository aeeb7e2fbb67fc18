"""The tensors of a running batch, a row for each slot, and the step that is made of them all at once.

A row holds all that a slot's next step depends on; nothing is computed across rows. So images of different schedulers,
steps and guidance scales share a step, and a row may be moved, kept aside and brought back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kubediffusion.worker.pipeline.families import HIDDEN_STATES, Conditions
from kubediffusion.worker.pipeline.tables import DEPTH, Table, advanced

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
    """

    history: torch.Tensor
    conditions: Conditions

    def on_host(self) -> Row:
        """Give a copy in the host's memory."""
        return Row(self.history.cpu(), {name: told.cpu() for name, told in self.conditions.items()})


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

    def enter(self, slot: int, row: Row) -> None:
        """Put an image into an empty slot."""
        self._history[slot] = row.history
        for name, condition in row.conditions.items():
            self._conditions[name][slot] = condition

    def row(self, slot: int) -> Row:
        """Give a copy of what a slot holds."""
        return Row(self._history[slot].clone(), {name: told[slot].clone() for name, told in self._conditions.items()})

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

    def views(self, size: int) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
        """Give the first slots' history, control and conditions, not copied."""
        conditions = {name: condition[:size] for name, condition in self._conditions.items()}
        return self._history[:size], self._control[:size], conditions


def denoise(unet: Any, history: torch.Tensor, control: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    """Make one step of a batch, and give the history after it.

    Args:
        unet: The denoiser.
        history: ``[batch, 2 * DEPTH, channels, height, width]``, float32.
        control: ``[batch, columns]``, float32.
        conditions: ``[batch, rows, ...]``, two rows with classifier-free guidance.
    """
    rows = conditions[HIDDEN_STATES].shape[1]
    latents = history[:, 0] * control[:, SCALE].reshape(-1, 1, 1, 1)
    # All negative prompts, then all prompts.
    told = {name: condition.transpose(0, 1).flatten(0, 1) for name, condition in conditions.items()}
    prompts = told.pop(HIDDEN_STATES)
    output = unet(
        torch.cat([latents] * rows).to(prompts.dtype),
        torch.cat([control[:, TIMESTEP]] * rows),
        encoder_hidden_states=prompts,
        added_cond_kwargs=told or None,
        return_dict=False,
    )[0].float()
    if rows > 1:
        without, given = output.chunk(2)
        output = without + control[:, GUIDANCE].reshape(-1, 1, 1, 1) * (given - without)
    return advanced(history, output, control[:, WEIGHTS:])
