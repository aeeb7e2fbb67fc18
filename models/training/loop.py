"""What every training loop needs: a schedule, averaged weights, checkpoints."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

log = logging.getLogger(__name__)


def cosine(step: int, steps: int, warmup: int = 500, floor: float = 0.01) -> float:
    """Return the factor on the learning rate: a linear start, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    part = (step - warmup) / max(steps - warmup, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_gradients(parameters: Sequence[Tensor]) -> None:
    """Average the gradients of all processes, in one message."""
    if rank_and_world()[1] == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    at = 0
    for g in grads:
        g.copy_(flat[at : at + g.numel()].view_as(g))
        at += g.numel()


def agreed(number: float) -> float:
    """Return the first process's number in all of them."""
    if rank_and_world()[1] == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(shared, 0)
    return float(shared.item())


class Pace:
    """Counts the steps of a loop; with a time to fill, it measures the first steps and then decides how many there are.

    Args:
        steps: How many steps, where no time is given.
        seconds: Time to fill.
        start: First step.
    """

    SETTLE, MEASURE = 40, 200

    def __init__(self, steps: int, seconds: float | None = None, start: int = 0) -> None:
        self.steps, self.seconds, self.start = steps, seconds, start
        self.began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the loop began."""
        return time.monotonic() - self.began

    def __iter__(self) -> Iterator[int]:
        step, settled = self.start, 0.0
        while step < self.steps:
            if self.seconds is not None and step == self.start + self.SETTLE:
                settled = self.elapsed
            if self.seconds is not None and step == self.start + self.MEASURE:
                each = (self.elapsed - settled) / (self.MEASURE - self.SETTLE)
                self.steps = int(agreed(step + max(int((self.seconds - self.elapsed) / each), 1)))
                log.info("%.1f ms a step: %d steps", 1000 * each, self.steps)
            yield step
            step += 1


class Clock:
    """Says what share of a loop is over: of its steps or, where an end is given, of its time.

    Time that earlier runs spent counts, so that a schedule which is resumed ends at its end. It is a part of the loop's
    checkpoint.

    Args:
        steps: How many steps, where no end is given.
        until: Time (of `time.time`) at which the loop is to have ended.
        over: Share of the loop that is over already, of which there is no checkpoint.
    """

    EVERY = 20  # steps between looks at the clock, which all processes share

    def __init__(self, steps: int, until: float | None = None, over: float = 0.0) -> None:
        self.steps, self.until = steps, until
        now = time.time()
        self.before = 0.0 if until is None else max(until - now, 0.0) * over / (1 - over)
        self.began = time.time()

    @property
    def spent(self) -> float:
        """Seconds that this run and those before it have spent in the loop."""
        return self.before + time.time() - self.began

    def state_dict(self) -> dict[str, float]:
        """Return what is spent."""
        return {"spent": self.spent}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from what is spent."""
        self.before = state["spent"]

    def run(self, start: int) -> Iterator[tuple[int, float]]:
        """Return the steps from `start`, each with the share of the loop that is over."""
        self.began = time.time()
        total = None if self.until is None else self.before + max(self.until - self.began, 1e-3)
        step, part = start, 0.0
        while True:
            if total is None:
                part = step / self.steps
            elif (step - start) % self.EVERY == 0:
                part = agreed(self.spent / total)
            if part >= 1:
                return
            yield step, part
            step += 1


def decayed(part: float, steps: int, warmup: int, floor: float = 0.01) -> float:
    """Return the factor on the learning rate: a linear start by steps, and half a cosine by the share that is over."""
    return min((steps + 1) / warmup, 1.0) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(part, 1.0))))


class Average:
    """Exponential moving average of a module's parameters and buffers.

    Args:
        module: What to follow.
        decay: Share of the old average that a step keeps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone().float() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float | None = None) -> None:
        """Update the average with the module's present weights."""
        share = 1 - (self.decay if decay is None else decay)
        now = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
        torch._foreach_lerp_([self.weights[k] for k in now], [v.float() for v in now.values()], share)

    def into(self, module: nn.Module) -> None:
        """Put the averaged weights into a module."""
        module.load_state_dict({k: v.to(module.state_dict()[k].dtype) for k, v in self.weights.items()})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights."""
        return self.weights

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the averaged weights."""
        for key, value in state.items():
            self.weights[key].copy_(value)


def save_checkpoint(path: Path, state: Mapping[str, Any], step: int) -> None:
    """Write everything that a loop resumes from, in one rename."""
    parts = {name: part.state_dict() for name, part in state.items()}
    fresh = path.with_suffix(".new")
    torch.save({"step": step, **parts}, fresh)
    fresh.replace(path)


def load_checkpoint(path: Path, state: Mapping[str, Any], device: torch.device) -> int:
    """Restore a loop, if it has a checkpoint.

    Returns:
        The step to go on with.
    """
    if not path.exists():
        return 0
    saved = torch.load(path, map_location=device, weights_only=True)
    for name, part in state.items():
        part.load_state_dict(saved[name])
    log.info("resuming %s at step %d", path.name, saved["step"])
    return int(saved["step"])
