"""What the engine is measured against: the same model by hand, one batch after the other, as fast as we know how.

One compiled and graphed step for a whole batch that runs alone: classifier-free guidance, UNet and DPM-Solver++ 2M,
with the coefficients as tensors; the text encoder graphed; the VAE compiled and graphed, one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from models import STEPS

from kubediffusion.worker.execution.decoding import decoded

COMPARED = (1, 8, 16)
"""Batch sizes for which it is compared with the engine."""


class Raw:
    """A batch size, prepared.

    Args:
        pipeline: The pipeline on a CUDA device, in the form that suits it: see ``accelerator.prepare``.
        size: Images in a batch.
        steps: Denoising steps.
        compiled: Whether it runs compiled code.
        captured: Whether it is to run, not only to be compiled.
    """

    def __init__(
        self, pipeline: Any, size: int, steps: int = STEPS, *, compiled: bool = True, captured: bool = True
    ) -> None:
        self._pipeline = pipeline
        self._size = size
        device, unet, vae = pipeline.device, pipeline.unet, pipeline.vae
        scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(steps)
        self._timesteps = scheduler.timesteps.to(device, torch.float32)
        self._table = _coefficients(scheduler, steps).to(device)
        side, channels = unet.config.sample_size, unet.config.in_channels
        self._latents = torch.zeros(size, channels, side, side, device=device)
        self._before = torch.zeros_like(self._latents)
        self._told = torch.zeros(
            2 * size,
            pipeline.tokenizer.model_max_length,
            unet.config.cross_attention_dim,
            device=device,
            dtype=unet.dtype,
        )
        self._timestep = torch.zeros(2 * size, device=device)
        self._row = torch.zeros(5, device=device)
        self._tokens = torch.zeros(1, pipeline.tokenizer.model_max_length, dtype=torch.long, device=device)
        self._decoded = torch.zeros(1, channels, side, side, device=device, dtype=vae.dtype)
        # The engine's own function decodes: what was compiled for it is found again.
        step, decode = (
            torch.compile(function, fullgraph=True, dynamic=False) if compiled else function
            for function in (_step, decoded)
        )

        def advance() -> None:
            latents, denoised = step(unet, self._latents, self._before, self._told, self._timestep, self._row, 7.5)
            self._latents.copy_(latents)
            self._before.copy_(denoised)

        if not captured:
            advance()
            return
        self._encode = graphed(lambda: pipeline.text_encoder(self._tokens)[0])
        self._advance = graphed(advance)
        self._decode = graphed(lambda: decode(vae, self._decoded))

    def run(self, prompts: list[str]) -> list[torch.Tensor]:
        """Make a batch, and return its pixels, ``[height, width, 3]``, in the host's memory."""
        tokenizer = self._pipeline.tokenizer
        self._told[: self._size] = self._encoded(tokenizer, "")
        for place, prompt in enumerate(prompts):
            self._told[self._size + place] = self._encoded(tokenizer, prompt)[0]
        for place in range(self._size):
            noise = torch.randn(self._latents.shape[1:], generator=torch.Generator().manual_seed(place))
            self._latents[place].copy_(noise.pin_memory(), non_blocking=True)
        for timestep, row in zip(self._timesteps, self._table, strict=True):
            self._timestep.copy_(timestep.expand_as(self._timestep))
            self._row.copy_(row)
            self._advance()
        images = []
        for place in range(self._size):
            self._decoded.copy_(self._latents[place : place + 1] / self._pipeline.vae.config.scaling_factor)
            image = self._decode()
            pixels = ((image[0] / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
            images.append(
                torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True).copy_(pixels, non_blocking=True)
            )
        torch.cuda.synchronize()
        return images

    def _encoded(self, tokenizer: Any, text: str) -> torch.Tensor:
        tokens = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self._tokens.copy_(tokens.pin_memory(), non_blocking=True)
        return self._encode()


def _step(
    unet: Any,
    latents: torch.Tensor,
    before: torch.Tensor,
    told: torch.Tensor,
    timestep: torch.Tensor,
    row: torch.Tensor,
    guidance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    output = unet(torch.cat([latents] * 2).to(told.dtype), timestep, encoder_hidden_states=told, return_dict=False)[0]
    without, given = output.float().chunk(2)
    denoised = row[0] * latents + row[1] * (without + guidance * (given - without))
    return row[2] * latents + row[3] * denoised + row[4] * before, denoised


def _coefficients(scheduler: Any, steps: int) -> torch.Tensor:
    """Return DPM-Solver++ 2M's weights: ``[steps, 5]``.

    Two make the denoised image of latents and output, three the next latents of latents, it, and the one before.

    https://arxiv.org/abs/2211.01095, algorithm 2; the last step is of first order.
    """
    scaled = scheduler.sigmas[: steps + 1].double()
    alphas = 1 / (scaled**2 + 1) ** 0.5
    sigmas = scaled * alphas
    halves = torch.log(alphas) - torch.log(sigmas)
    rows = []
    for step in range(steps):
        begin, end = step, step + 1
        to_denoised = [1 / alphas[begin], -sigmas[begin] / alphas[begin]]
        if end == steps:
            rows.append([*to_denoised, 0.0, 1.0, 0.0])
            continue
        width = halves[end] - halves[begin]
        change = -alphas[end] * torch.expm1(-width)
        back = 0.5 * width / (halves[begin] - halves[begin - 1]) if step else 0.0
        rows.append([*to_denoised, sigmas[end] / sigmas[begin], change * (1 + back), -change * back])
    return torch.tensor(rows, dtype=torch.float32)


def graphed(compute: Callable[[], Any]) -> Callable[[], Any]:
    """Capture a computation, and return what replays it: its result lies where it did."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()

    def replay() -> Any:
        graph.replay()
        return result

    return replay
