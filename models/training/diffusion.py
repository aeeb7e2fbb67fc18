"""The diffusion model: a UNet that predicts velocity, trained together with its text encoder."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from .loop import Average, Pace, cosine, load_checkpoint, rank_and_world, save_checkpoint, share_gradients
from .optimizer import optimizers
from .text import empty_caption, new_text_encoder
from .vae import lean

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from .settings import Settings

log = logging.getLogger(__name__)
STEPS = 1000  # of the training schedule


def new_unet(settings: Settings) -> Any:
    """Return an untrained UNet with text attention at a half and a quarter of the latent's side."""
    shape = settings.diffusion
    kind: Any = UNet2DConditionModel
    return kind(
        sample_size=settings.data.size // 8,
        in_channels=settings.vae.latent_channels,
        out_channels=settings.vae.latent_channels,
        block_out_channels=tuple(shape.channels),
        layers_per_block=tuple(shape.layers),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=shape.text_width,
        attention_head_dim=shape.heads,  # diffusers' old name for the number of heads
        norm_num_groups=16,
    )


def parts(settings: Settings, tokenizer: Any, device: torch.device, initial: Path | None = None) -> tuple[Any, Any]:
    """Return text encoder and UNet in float32, untrained or those of a pipeline folder."""
    text = new_text_encoder(settings, tokenizer).to(device)
    unet = lean(new_unet(settings).to(device, memory_format=torch.channels_last))
    if initial is not None:
        encoders, unets = cast("Any", CLIPTextModel), cast("Any", UNet2DConditionModel)
        text.load_state_dict(encoders.from_pretrained(initial / "text_encoder").float().state_dict())
        unet.load_state_dict(unets.from_pretrained(initial / "unet").float().state_dict())
    return text, unet


def new_scheduler(settings: Settings) -> Any:
    """Return the scheduler that ships: DPM-Solver++ of second order (Lu et al., 2022), good at 25 steps."""
    config: dict[str, Any] = {
        "num_train_timesteps": STEPS,
        "beta_start": settings.diffusion.beta_start,
        "beta_end": settings.diffusion.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "timestep_spacing": "trailing",
        "lower_order_final": True,
        "euler_at_final": True,
        # Not for this scheduler, but for others that a job makes from this configuration (DDIM, DDPM, PNDM).
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    kind: Any = DPMSolverMultistepScheduler
    return kind.from_config(config)


def noise_levels(settings: Settings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return sqrt(ᾱ) and sqrt(1 - ᾱ) for each of the 1,000 steps: shares of signal and noise."""
    alphas = new_scheduler(settings).alphas_cumprod.to(device)
    return alphas.sqrt(), (1 - alphas).sqrt()


def train(
    settings: Settings,
    latents: Tensor,
    ids: Tensor,
    tokenizer: Any,
    seconds: float | None = None,
    initial: Path | None = None,
) -> tuple[Any, Any]:
    """Train text encoder and UNet, or resume them.

    v-prediction (Salimans & Ho, 2022): with x_t = a·x + s·e, the target is v = a·e - s·x, where a = sqrt(ᾱ_t) and
    s = sqrt(1 - ᾱ_t).

    Args:
        settings: The configuration.
        latents: float16 [n, channels, side, side].
        ids: int16 [n, captions, 77].
        tokenizer: Gives the empty caption.
        seconds: Time to fill instead of the configured steps.
        initial: A pipeline folder whose text encoder and UNet to train further.

    Returns:
        The averaged text encoder and UNet.
    """
    device, shape = latents.device, settings.diffusion
    fast = device.type == "cuda"
    rank, world = rank_and_world()
    batch = shape.batch // world  # the configured batch is that of all devices together
    torch.manual_seed(settings.seed + 2)
    text, unet = parts(settings, tokenizer, device, initial)
    averages = Average(text, shape.ema), Average(unet, shape.ema)
    parameters = [*text.parameters(), *unet.parameters()]
    inner, outer = optimizers((text, unet), shape.rate)
    state = {"text": text, "unet": unet, "text_average": averages[0], "unet_average": averages[1]}
    state |= {"inner": inner, "outer": outer}
    path = settings.work / "diffusion.pt"
    start = load_checkpoint(path, state, device)
    read: Any = torch.compile(text, disable=not fast, dynamic=False)
    forward: Any = torch.compile(unet, disable=not fast, dynamic=False)
    signal, noise = noise_levels(settings, device)
    empty = empty_caption(tokenizer, device)
    spread = torch.arange(batch, device=device) / batch
    torch.manual_seed(settings.seed + 3 + rank)
    pace = Pace(shape.steps, seconds, start)
    saved = time.monotonic()
    seen = torch.zeros((), device=device)
    for step in pace:
        for group in (*inner.param_groups, *outer.param_groups):
            group["lr"] = shape.rate * cosine(step, pace.steps, warmup=400)
        rows = torch.randint(len(latents), (batch,), device=device)
        x = latents[rows].float().contiguous(memory_format=torch.channels_last)
        tokens = ids[rows, torch.randint(ids.shape[1], (batch,), device=device)].long()
        tokens = torch.where(torch.rand(batch, 1, device=device) < shape.empty, empty, tokens)
        t = (((spread + torch.rand((), device=device)) % 1.0) * STEPS).long()
        a, s = signal[t].view(-1, 1, 1, 1), noise[t].view(-1, 1, 1, 1)
        e = torch.randn_like(x)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            words = read(tokens).last_hidden_state
            guess = forward(a * x + s * e, t, words).sample
        loss = F.mse_loss(guess.float(), a * e - s * x)
        inner.zero_grad(set_to_none=True)
        outer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        share_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        inner.step()
        outer.step()
        share = min(shape.ema, (1 + step) / (10 + step))
        averages[0].update(text, share)
        averages[1].update(unet, share)
        seen += loss.detach()
        if step % 200 == 0 or step == pace.steps - 1:
            log.info(
                "diffusion %d/%d loss %.4f, %.0f s",
                step,
                pace.steps,
                seen.item() / (200 if step % 200 == 0 else 1),
                pace.elapsed,
            )
            seen.zero_()
        if rank == 0 and (time.monotonic() - saved > 100 or step == pace.steps - 1):
            save_checkpoint(path, state, step + 1)
            saved = time.monotonic()
    averages[0].into(text)
    averages[1].into(unet)
    return text.eval(), unet.eval()
