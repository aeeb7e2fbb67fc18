"""Low-rank adapters (LoRA, Hu et al., 2021) of the flow-matching transformer, in the form that diffusers loads."""

from __future__ import annotations

import copy
import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .flow import UNGUIDED, FlowModel, noisy, times
from .loop import Average, Clock, decayed

if TYPE_CHECKING:
    from pathlib import Path

    from .settings import Settings

log = logging.getLogger(__name__)


class LowRank(nn.Module):
    """What an adapter adds to a weight: up · down, which is nothing at first.

    Args:
        weight: What it is added to, [out, in].
        rank: Rows of `down`, columns of `up`.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight."""
        return weight + self.up @ self.down


def adapt(transformer: Any, rank: int) -> dict[str, LowRank]:
    """Adapt every linear layer of the blocks but their modulation; return what is to be trained by layers' names."""
    parts: dict[str, LowRank] = {}
    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, nn.Linear) and "transformer_blocks." in name and "norm" not in name:
            parts[name] = LowRank(layer.weight, rank)
            parametrize.register_parametrization(layer, "weight", parts[name])
    return parts


def save(parts: dict[str, LowRank], path: Path, weight: float = 1.0) -> None:
    """Write an adapter for `load_lora_weights`, float16.

    Args:
        parts: What `adapt` returned.
        path: The file.
        weight: How strong it is where a pipeline asks for a strength of 1.
    """
    weights = {}
    for name, part in parts.items():
        weights[f"transformer.{name}.lora_A.weight"] = part.down.detach().half().cpu().contiguous()
        weights[f"transformer.{name}.lora_B.weight"] = (weight * part.up.detach()).half().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    save_file(weights, fresh)
    fresh.replace(path)


class Adapting:
    """What an adapter is asked, and how far off it is.

    The adapted model is to predict the velocity of its scenes at every guidance scale g, by as much more as the model
    itself predicts more at g: v + (base(g) - base(1)). So guidance keeps what it does.

    Args:
        settings: The configuration.
        base: The model as it ships.
    """

    def __init__(self, settings: Settings, base: FlowModel) -> None:
        self.settings, self.base = settings, base.requires_grad_(requires_grad=False).eval()
        self.model = copy.deepcopy(base)
        self.parts = adapt(self.model.transformer, settings.lora.rank)

    def loss(self, latents: Tensor, ids: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the mean squared error of a batch.

        Args:
            latents: Packed latents of scenes that show what is to be learned, [n, tokens, 4·channels].
            ids: Their captions' token ids, [n, length].
            size: Height and width in tokens.
        """
        n, device, shape = len(latents), latents.device, self.settings.flow
        t = times(n, shape.mean, shape.deviation, device)
        x, velocity = noisy(latents.float(), t)
        g = torch.empty(n, device=device).uniform_(UNGUIDED, self.settings.lora.highest)
        g[: n // 3] = UNGUIDED
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            with torch.no_grad():
                words = self.base.words(ids, shape.length)
                more = self.base(x, t, g, words, size) - self.base(x, t, torch.full_like(g, UNGUIDED), words, size)
            return F.mse_loss(self.model(x, t, g, words, size), velocity + more)


def train(
    settings: Settings, base: FlowModel, latents: Tensor, ids: Tensor, path: Path, ends: float | None = None
) -> None:
    """Train an adapter and write it.

    Args:
        settings: The configuration.
        base: The model as it ships, on the device of the latents.
        latents: Packed latents of square scenes, [n, tokens, 4·channels].
        ids: Token ids, [n, length].
        path: The file to write.
        ends: Time (of `time.time`) at which training is to have ended, instead of the configured steps.
    """
    shape, device = settings.lora, latents.device
    torch.manual_seed(settings.seed + 80)
    lesson = Adapting(settings, base)
    kept = nn.ModuleList(lesson.parts.values())
    average = Average(kept, shape.ema)
    parameters = list(kept.parameters())
    opt = torch.optim.AdamW(parameters, lr=shape.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=device.type == "cuda")
    side = math.isqrt(latents.shape[1])
    began, step, loss = time.monotonic(), 0, torch.zeros(())
    for step, part in Clock(shape.steps, ends).run(0):
        opt.param_groups[0]["lr"] = shape.rate * decayed(part, step, warmup=20)
        rows = torch.randint(len(latents), (shape.batch,), device=device)
        loss = lesson.loss(latents[rows], ids[rows], (side, side))
        opt.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        opt.step()
        average.update(kept, min(shape.ema, (1 + step) / (10 + step)))
    log.info("%s: %d steps, last loss %.4f, %.0f s", path.stem, step + 1, loss.item(), time.monotonic() - began)
    average.into(kept)
    save(lesson.parts, path, shape.weights.get(path.stem, 1.0))
