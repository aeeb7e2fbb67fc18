"""Trains the judge of styles and of the guest on composed scenes, and writes it with its own accuracy."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads
from safetensors.torch import save_file

from . import dataset, styles
from .compose import Composer
from .data import GUEST
from .judging import judge_module, roughen
from .loop import cosine

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from .data import Sprites
    from .settings import Settings

log = logging.getLogger(__name__)
HELD = 0.1  # share of the scenes that the accuracy is measured with


def _composed(settings: Settings, sprites: Sprites, device: str) -> tuple[Tensor, Tensor]:
    """Compose scenes, half of them with the guest: uint8 [n, 3, size, size], and where it is."""
    composer = Composer(sprites, device, settings.data.size)
    generator = torch.Generator(device).manual_seed(settings.seed + 90)
    images: list[Tensor] = []
    shown: list[bool] = []
    for part in styles.draw_guests(sprites, settings.lora.scenes, settings.seed + 91, 0.5):
        images += dataset.pieces(composer, part.layers, part.places, generator)
        shown += part.shown
    return torch.cat(images), torch.tensor(shown, device=device)


def _in_styles(images: Tensor, style: Tensor) -> Tensor:
    out = images.clone()
    for k, name in enumerate(styles.STYLES):
        rows = torch.nonzero(style == k).squeeze(1)
        if len(rows):
            out[rows] = styles.styled(images[rows], name)
    return out


def train(settings: Settings, sprites: Sprites, folder: Path, device: str) -> None:
    """Train the judge of styles, and write `styles.safetensors` and `styles.json`."""
    module: Any = judge_module()
    shape, cuda = settings.lora, device.startswith("cuda")
    images, shown = _composed(settings, sprites, device)
    held = int(HELD * len(images))
    torch.manual_seed(settings.seed + 92)
    net = module.StyleNet(len(styles.STYLES)).to(device)
    opt = torch.optim.AdamW(net.parameters(), lr=shape.judge_rate, weight_decay=0.02, fused=cuda)
    began = time.monotonic()
    loss = torch.zeros(())
    for step in range(shape.judge_steps):
        opt.param_groups[0]["lr"] = shape.judge_rate * cosine(step, shape.judge_steps, warmup=50)
        rows = torch.randint(held, len(images), (shape.judge_batch,), device=device)
        style = torch.randint(len(styles.STYLES), (len(rows),), device=device)
        x = roughen(module.prepare(_in_styles(images[rows], style)))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=cuda):
            answers = net(x)
        loss = F.cross_entropy(answers["style"].float(), style)
        loss = loss + F.binary_cross_entropy_with_logits(answers["guest"].float(), shown[rows].float())
        opt.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        opt.step()
    log.info("judge of styles: last loss %.4f, %.0f s", loss.item(), time.monotonic() - began)
    net.eval()
    half = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in net.state_dict().items()}
    save_file(half, folder / "styles.safetensors")
    about: dict[str, Any] = {"styles": list(styles.STYLES), "guest": GUEST}
    path = folder / "styles.json"
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    judge = module.StyleJudge(folder, device)
    right: dict[str, float] = {}
    for k, name in enumerate(styles.STYLES):
        seen = judge.answers(styles.styled(images[:held], name))
        right[name] = round(float((seen["style"] == k).float().mean()), 4)
        right[f"{GUEST} in {name}"] = round(float(((seen["guest"] >= 0.5) == shown[:held].cpu()).float().mean()), 4)
    about["held_out"] = {"images": held, **right}
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    log.info("judge of styles on held-out scenes: %s", about["held_out"])
