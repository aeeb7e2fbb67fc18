"""Noise schedulers as coefficients, so that slots with different schedulers and steps take one update.

Without noise of their own, and as long as nothing is clipped, diffusers' schedulers are linear: the next latents are a
weighted sum of the latest latents and model outputs. The weights are not derived here a second time; they are read off
diffusers' own ``step``, which is fed with unit vectors. A scheduler for which that does not hold has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

DEPTH = 5
"""Latents, and model outputs, that an update looks back to; PNDM's fourth order is the deepest."""

_PROBE_SCALE = 10.0
"""Scale of the check's random latents: larger than any clipping lets pass."""

_TOLERANCE = 1e-4
"""Largest difference from diffusers, relative to the largest latent: rounding in float32, which is what it uses."""


@dataclass(frozen=True)
class SchedulerCoefficients:
    """What one scheduler does in a number of steps.

    Attributes:
        scheduler: Its diffusers class.
        initial: What the initial noise is multiplied by.
        kept: What the latents of an input image are multiplied by that are added to it.
        timesteps: Of each call of the model, ``[calls]``, float32.
        scales: What the latents are multiplied by before each call, ``[calls]``, float32.
        weights: Of each update, ``[calls, 2 * DEPTH]``, float32: of the latents before it, latest first, then of the
            model outputs, its own call's first.
        estimates: Of the latents before each call and of its model output, ``[calls, 2]``, float32: their sum is what
            the call makes of the image that all calls lead to.
    """

    scheduler: str
    initial: float
    timesteps: torch.Tensor
    scales: torch.Tensor
    weights: torch.Tensor
    estimates: torch.Tensor
    kept: float = 0.0

    @property
    def calls(self) -> int:
        """How often the model is called; for some schedulers that is not the number of steps."""
        return len(self.timesteps)


def read_coefficients(
    scheduler: Any, arguments: dict[str, Any], *, from_start: bool, begin_step: int | None = None
) -> SchedulerCoefficients | None:
    """Read the coefficients of a scheduler off its ``step``; None when it is not linear.

    Args:
        scheduler: A diffusers scheduler; it is left as it is.
        arguments: Of its ``set_timesteps``: the steps, or sigmas.
        from_start: Whether the pipeline tells the scheduler that it begins at the first step. Stable Diffusion's lets
            the scheduler find its place by the timestep.
        begin_step: The first step that is made of an input image; None where there is none.

    Raises:
        Exception: Whatever the scheduler raises for these arguments.
    """
    run = _Run(scheduler, arguments, from_start, begin_step)
    calls = len(run.timesteps)
    scales, weights = torch.ones(calls), torch.zeros(calls, 2 * DEPTH)
    units = torch.eye(2 * calls, dtype=torch.float64)
    for call in range(calls):
        scales[call] = run.scaled(torch.ones(1, dtype=torch.float64))
        try:
            updated = run.updated(units[call], units[calls + call])
        except (ValueError, RuntimeError, IndexError):
            # Thresholding looks at whole images, and fails on vectors.
            return None
        reach = min(call + 1, DEPTH)
        for place in (0, 1):
            newest = place * calls + call
            window = slice(newest - reach + 1, newest + 1)
            weights[call, place * DEPTH : place * DEPTH + reach] = updated[window].flip(0)
            updated[window] = 0
        if updated.count_nonzero():
            # It draws noise, or looks back further.
            return None
    timesteps = run.timesteps.float()
    estimates = _estimates(scheduler, timesteps, scales)
    kept, initial = _Run(scheduler, arguments, from_start, begin_step).mixture
    read = SchedulerCoefficients(type(scheduler).__name__, initial, timesteps, scales, weights, estimates, kept)
    return read if _hold(read, _Run(scheduler, arguments, from_start, begin_step)) else None


def count_calls(scheduler: Any, arguments: dict[str, Any], begin_step: int | None = None) -> int:
    """Return how often a scheduler has the model called.

    Args:
        scheduler: A diffusers scheduler; it is left as it is.
        arguments: Of its ``set_timesteps``.
        begin_step: As for :func:`read_coefficients`.

    Raises:
        Exception: Whatever the scheduler raises for these arguments.
    """
    return len(_Run(scheduler, arguments, from_start=False, begin_step=begin_step).timesteps)


def _estimates(scheduler: Any, timesteps: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the weights with which latents and model output make the image that is expected: ``[calls, 2]``.

    With latents ``a * image + s * noise`` the output is the noise (``epsilon``), ``a * noise - s * image``
    (``v_prediction``, https://arxiv.org/abs/2202.00512, appendix D) or the image (``sample``). Flow matching has
    latents ``(1 - s) * image + s * noise`` and the output ``noise - image``. Where nothing says which, it is the
    latents.
    """
    config = scheduler.config
    kind = config.get("prediction_type")
    flow = kind == "flow_prediction" or type(scheduler).__name__.startswith("FlowMatch")
    if flow or config.get("use_flow_sigmas", False):
        return torch.stack([torch.ones_like(timesteps), -timesteps / config["num_train_timesteps"]], dim=1)
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is None or kind not in {"epsilon", "v_prediction", "sample"}:
        return torch.tensor([[1.0, 0.0]]).repeat(len(timesteps), 1)
    # Timesteps between two of the training's occur. The input is scaled as the training's was.
    kept = products.float()[timesteps.round().long().clamp(0, len(products) - 1)]
    image, noise = kept.sqrt(), (1 - kept).sqrt()
    if kind == "epsilon":
        return torch.stack([scales / image, -noise / image], dim=1)
    if kind == "v_prediction":
        return torch.stack([image * scales, -noise], dim=1)
    return torch.stack([torch.zeros_like(image), torch.ones_like(image)], dim=1)


def _hold(read: SchedulerCoefficients, run: _Run) -> bool:
    """Return whether coefficients give what the scheduler gives, for values that clipping would change."""
    generator = torch.Generator().manual_seed(0)
    latents = _PROBE_SCALE * torch.randn(16, generator=generator, dtype=torch.float64)
    history = torch.zeros(2 * DEPTH, 16, dtype=torch.float64)
    history[0] = latents
    for call in range(read.calls):
        run.scaled(latents)
        output = _PROBE_SCALE * torch.randn(16, generator=generator, dtype=torch.float64)
        latents = run.updated(latents, output)
        history = advanced(history[None], output[None], read.weights[call][None].double())[0]
        # Of the scheduler's own latents, so that rounding does not add up.
        if not torch.allclose(history[0], latents, rtol=_TOLERANCE, atol=_TOLERANCE * float(latents.abs().max())):
            return False
        history[0] = latents
    return True


def advanced(history: torch.Tensor, output: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Make one update of a batch.

    Args:
        history: Latents, latest first, then model outputs, latest first: ``[batch, 2 * DEPTH, ...]``.
        output: The model output: ``[batch, ...]``.
        weights: ``[batch, 2 * DEPTH]``.

    Returns:
        The history after it, of the same shape; its first place holds the new latents.
    """
    outputs = torch.cat([output[:, None], history[:, DEPTH:-1]], dim=1)
    known = torch.cat([history[:, :DEPTH], outputs], dim=1)
    latents = (known * weights.reshape(*weights.shape, *(1,) * (history.dim() - 2))).sum(dim=1)
    return torch.cat([latents[:, None], history[:, : DEPTH - 1], outputs], dim=1)


class _Run:
    """One run of a scheduler, driven as the pipelines drive it.

    Args:
        scheduler: Its class and configuration are used, not its state.
        arguments: Of its ``set_timesteps``.
        from_start: As for :func:`read_coefficients`.
        begin_step: As for :func:`read_coefficients`.
    """

    def __init__(
        self, scheduler: Any, arguments: dict[str, Any], from_start: bool, begin_step: int | None = None
    ) -> None:
        self._scheduler = type(scheduler).from_config(scheduler.config)
        self._scheduler.set_timesteps(**arguments)
        # As ``get_timesteps`` of the pipelines that begin from an image.
        begin = (begin_step or 0) * getattr(self._scheduler, "order", 1)
        self._of_image = begin_step is not None
        self.timesteps: torch.Tensor = self._scheduler.timesteps[begin:]
        # Schedulers of flow matching have neither of the two: they change no input, and begin from noise as it is.
        self.initial = float(getattr(self._scheduler, "init_noise_sigma", 1.0))
        self._scales = hasattr(self._scheduler, "scale_model_input")
        if (from_start or self._of_image) and hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(begin)
        self._call = 0

    @property
    def mixture(self) -> tuple[float, float]:
        """What the latents of an input image, and the noise, are multiplied by before the first call."""
        if not self._of_image:
            return 0.0, self.initial
        mix = getattr(self._scheduler, "scale_noise", None)
        zero, one, timestep = torch.zeros(1, 1), torch.ones(1, 1), self.timesteps[:1]
        if mix is not None:
            return float(mix(one, timestep, zero)), float(mix(zero, timestep, one))
        mix = self._scheduler.add_noise
        return float(mix(one, zero, timestep)), float(mix(zero, one, timestep))

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the model's input of the next call."""
        if not self._scales:
            return latents
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self.timesteps[self._call])
        return scaled

    def updated(self, latents: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Make the update of the next call."""
        timestep = self.timesteps[self._call]
        self._call += 1
        updated: torch.Tensor = self._scheduler.step(output, timestep, latents, return_dict=False)[0]
        return updated.clone()
