"""The autoencoder: pixels to latents of an eighth of the side, and back."""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .loop import Average, Pace, cosine, load_checkpoint, rank_and_world, save_checkpoint, share_gradients

if TYPE_CHECKING:
    from pathlib import Path

    from .settings import Settings

log = logging.getLogger(__name__)


def new_vae(settings: Settings) -> Any:
    """Return an untrained autoencoder without attention, so that any size that is a multiple of 8 works alike."""
    shape = settings.vae
    levels = len(shape.channels)
    kind: Any = AutoencoderKL
    return kind(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(shape.channels),
        layers_per_block=1,
        latent_channels=shape.latent_channels,
        norm_num_groups=8,
        sample_size=settings.data.size,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def load(folder: Path) -> Any:
    """Load a trained autoencoder, in float32."""
    kind: Any = AutoencoderKL
    return kind.from_pretrained(folder).float()


@torch.no_grad()
def widen(vae: Any, old: Any) -> Any:
    """Begin with the weights of an autoencoder of fewer latent channels; those that it lacks begin as they are.

    Args:
        vae: Untrained, of the same shape but for its latent channels.
        old: The trained one.
    """
    before, after = old.config.latent_channels, vae.config.latent_channels
    fresh = vae.state_dict()
    for name, weight in old.state_dict().items():
        target = fresh[name]
        if name in {"post_quant_conv.weight", "decoder.conv_in.weight"}:
            target *= 0.1  # what the new channels say at first is noise
        if name in {"quant_conv.weight", "quant_conv.bias"}:  # means first, then logarithms of variances
            for k in range(2):
                rows = target[k * after : k * after + before]
                rows[(slice(None), slice(0, 2 * before)) if weight.ndim > 1 else slice(None)] = weight[
                    k * before : (k + 1) * before
                ]
                if weight.ndim > 1:
                    rows[:, 2 * before :] = 0
        else:
            target[tuple(slice(0, side) for side in weight.shape)] = weight
    vae.load_state_dict(fresh)
    return vae


def lean(module: Any) -> Any:
    """Let group normalisation keep bfloat16 under autocast, which would widen it to float32: half the traffic."""

    def forward(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)

    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            part.forward = functools.partial(forward, part)  # type: ignore[method-assign]
    return module


class Critic(nn.Module):
    """Says of each patch of 34 by 34 pixels how real it looks (PatchGAN, Isola et al., 2017)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for after, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride, 1)), nn.LeakyReLU(0.2)]
            before = after
        layers.append(spectral_norm(nn.Conv2d(before, 1, 4, 1, 1)))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, 3, h, w] to scores [n, 1, ~h/4, ~w/4]."""
        result: Tensor = self.net(x)
        return result


def difference(made: Tensor, real: Tensor) -> Tensor:
    """Return how unlike two batches are: absolute and squared error, and the error of edges at three scales.

    The squared term is what PSNR counts; the edges (differences between neighbours) keep outlines sharp.
    """
    total = (made - real).abs().mean() + 2.0 * F.mse_loss(made, real)
    for scale in range(3):
        for axis in (2, 3):
            total = total + 0.5 * (made.diff(dim=axis) - real.diff(dim=axis)).abs().mean()
        if scale < 2:
            made, real = F.avg_pool2d(made, 2), F.avg_pool2d(real, 2)
    return total


def pixels(images: Tensor) -> Tensor:
    """Turn uint8 images into float -1..1."""
    return images.float() / 127.5 - 1


def train(
    settings: Settings, images: Tensor, held: Tensor, seconds: float | None = None, initial: Path | None = None
) -> Any:
    """Train the autoencoder, or resume it.

    Args:
        settings: The configuration.
        images: uint8 [n, 3, size, size], on the device to train on.
        held: The same of held-out combinations, to measure.
        seconds: Time to fill instead of the configured steps.
        initial: Folder of an autoencoder of fewer latent channels to begin with.

    Returns:
        The averaged autoencoder, its latents normalised (see `normalise`).
    """
    device, shape = images.device, settings.vae
    rank, _ = rank_and_world()
    fast = device.type == "cuda"
    torch.manual_seed(settings.seed)
    vae = new_vae(settings)
    if initial is not None:
        vae = widen(vae, load(initial))
    vae = lean(vae.to(device, memory_format=torch.channels_last))
    critic = Critic().to(device)
    average = Average(vae, 0.999)
    opt = torch.optim.AdamW(vae.parameters(), lr=shape.rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=fast)
    opt_critic = torch.optim.AdamW(critic.parameters(), lr=shape.rate * 0.5, betas=(0.5, 0.95), fused=fast)
    state = {"vae": vae, "critic": critic, "average": average, "opt": opt, "opt_critic": opt_critic}
    path = settings.work / "vae.pt"
    start = load_checkpoint(path, state, device)
    torch.manual_seed(settings.seed + 100 + rank)

    @torch.compile(disable=not fast, dynamic=False)
    def to_latents(x: Tensor) -> Tensor:
        latents: Tensor = vae.quant_conv(vae.encoder(x))
        return latents

    @torch.compile(disable=not fast, dynamic=False)
    def to_pixels(z: Tensor) -> Tensor:
        decoded: Tensor = vae.decoder(vae.post_quant_conv(z))
        return decoded

    pace = Pace(shape.steps, seconds, start)
    saved = time.monotonic()
    for step in pace:
        rate = cosine(step, pace.steps, warmup=200)
        opt.param_groups[0]["lr"] = shape.rate * rate
        opt_critic.param_groups[0]["lr"] = shape.rate * 0.5 * rate
        real = pixels(images[torch.randint(len(images), (shape.batch,), device=device)])
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            mean, logvar = to_latents(real.contiguous(memory_format=torch.channels_last)).float().chunk(2, 1)
            logvar = logvar.clamp(-20, 10)
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            made = to_pixels(z).float()
            kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
            extra = shape.kl * kl
            if step % round(1 / shape.equivariance) == 0:  # EQ-VAE (Kouzelis et al., 2025): half latents, half image
                small = to_pixels(F.avg_pool2d(z, 2)).float()
                extra = extra + 0.25 * difference(small, F.avg_pool2d(real, 2))
        share = shape.adversarial if step >= shape.adversarial_from * pace.steps else 0.0
        opt.zero_grad(set_to_none=True)
        leaf = made.detach().requires_grad_()
        loss = difference(leaf, real)
        (toward,) = torch.autograd.grad(loss, leaf)
        if share:
            toward = toward + share * _adversarial(critic, opt_critic, leaf, real, toward)
        torch.autograd.backward([made, extra], [toward, torch.ones_like(extra)])
        share_gradients(list(vae.parameters()))
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        opt.step()
        average.update(vae, min(0.999, (1 + step) / (10 + step)))
        if step % 200 == 0 or step == pace.steps - 1:
            log.info("vae %d/%d loss %.4f kl %.2f, %.0f s", step, pace.steps, loss.item(), kl.item(), pace.elapsed)
        if rank == 0 and (time.monotonic() - saved > 60 or step == pace.steps - 1):
            save_checkpoint(path, state, step + 1)
            saved = time.monotonic()
    average.into(vae)
    vae.eval()
    log.info("vae: PSNR %.2f dB on held-out scenes", psnr(vae, held))
    normalise(vae, images[:2000])
    return vae


def _adversarial(critic: Critic, opt: torch.optim.Optimizer, made: Tensor, real: Tensor, toward: Tensor) -> Tensor:
    """Teach the critic for a step (hinge loss); return its gradient on the made images, scaled to `toward`'s norm."""
    with torch.autocast(made.device.type, torch.bfloat16, enabled=made.device.type == "cuda"):
        scores_made, scores_real = critic(made.detach()), critic(real)
        loss = F.relu(1 + scores_made.float()).mean() + F.relu(1 - scores_real.float()).mean()
    opt.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    share_gradients(list(critic.parameters()))
    opt.step()
    with torch.autocast(made.device.type, torch.bfloat16, enabled=made.device.type == "cuda"):
        wish = -critic(made).float().mean()
    (gradient,) = torch.autograd.grad(wish, made)
    scaled: Tensor = gradient * (toward.norm() / gradient.norm().clamp(min=1e-12))
    return scaled


@torch.no_grad()
def psnr(vae: Any, images: Tensor, batch: int = 50) -> float:
    """Return the mean peak signal-to-noise ratio of reconstructions, in dB: 10·log10(255² / MSE), by image.

    Reconstructions are rounded to 8 bits, as a PNG has them. The latents' mean is decoded.
    """
    values: list[Tensor] = []
    for i in range(0, len(images), batch):
        part = images[i : i + batch]
        x = pixels(part).to(vae.dtype)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.float()
        y = ((y / 2 + 0.5).clamp(0, 1) * 255).round()
        mse = ((y - part.float()) ** 2).mean((1, 2, 3)).clamp(min=1e-6)
        values.append(10 * torch.log10(255**2 / mse))
    return float(torch.cat(values).mean())


@torch.no_grad()
def encode(vae: Any, images: Tensor) -> Tensor:
    """Return the latents' means, [n, channels, size / 8, size / 8]."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
        latents: Tensor = vae.encode(pixels(images)).latent_dist.mode().float()
    return latents


@torch.no_grad()
def normalise(vae: Any, images: Tensor) -> None:
    """Normalise each latent channel to mean 0, variance 1, by folding an affine map into the two 1-by-1 convolutions.

    Pipelines know one `scaling_factor` for all channels; this way it is 1, and every channel has the same scale.
    """
    z = torch.cat([encode(vae, images[i : i + 100]) for i in range(0, len(images), 100)])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= std.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * torch.log(std)
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std.view(1, -1, 1, 1)
