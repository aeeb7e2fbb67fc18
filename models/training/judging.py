"""Trains the judge on composed scenes, and writes it with its own accuracy."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads
from safetensors.torch import save_file

from .backgrounds import BACKGROUNDS
from .loop import cosine, load_checkpoint, save_checkpoint
from .scenes import RELATIONS
from .settings import ROOT
from .subjects import subjects

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from torch import Tensor

    from .dataset import Pool
    from .settings import Settings

log = logging.getLogger(__name__)


def judge_module() -> ModuleType:
    """Import `models/judge/judge.py`, which is no part of this package so that anyone can use it alone."""
    if "kubediffusion_judge" in sys.modules:
        return sys.modules["kubediffusion_judge"]
    spec = importlib.util.spec_from_file_location("kubediffusion_judge", ROOT / "models" / "judge" / "judge.py")
    if spec is None or spec.loader is None:
        raise ImportError("models/judge/judge.py is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules["kubediffusion_judge"] = module
    spec.loader.exec_module(module)
    return module


def roughen(x: Tensor) -> Tensor:
    """Blur, shift, brighten and add noise at random, so that softness alone does not mislead the judge."""
    n, device = len(x), x.device
    blur = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blur, torch.rand(n, 1, 1, 1, device=device) * (torch.rand(n, 1, 1, 1, device=device) < 0.5))
    x = x * (0.9 + 0.2 * torch.rand(n, 1, 1, 1, device=device)) + 0.1 * (torch.rand(n, 1, 1, 1, device=device) - 0.5)
    x = x + 0.06 * torch.rand(n, 1, 1, 1, device=device) * torch.randn_like(x)
    dy, dx = (int(v) for v in torch.randint(-4, 5, (2,)))
    return x.roll((dy, dx), (2, 3))


def train(settings: Settings, pool: Pool, held: Pool, folder: Path) -> None:
    """Train the judge, or resume it, and write `judge.safetensors` and `judge.json`.

    Args:
        settings: The configuration.
        pool: Composed scenes of combinations for training.
        held: Composed scenes of held-out combinations.
        folder: Where to write.
    """
    module: Any = judge_module()
    device, shape = pool.images.device, settings.judge
    fast = device.type == "cuda"
    torch.manual_seed(settings.seed + 1)
    net = module.JudgeNet(len(subjects()), len(BACKGROUNDS), len(RELATIONS)).to(
        device, memory_format=torch.channels_last
    )
    opt = torch.optim.AdamW(net.parameters(), lr=shape.rate, weight_decay=0.02, fused=fast)
    state = {"net": net, "opt": opt}
    path = settings.work / "judge.pt"
    start = load_checkpoint(path, state, device)
    began = time.monotonic()
    for step in range(start, shape.steps):
        opt.param_groups[0]["lr"] = shape.rate * cosine(step, shape.steps, warmup=100)
        rows = torch.randint(len(pool.images), (shape.batch,), device=device)
        x = roughen(module.prepare(pool.images[rows])).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            answers = net(x)
        loss = loss_of({k: v.float() for k, v in answers.items()}, pool.shown[rows].float(), pool.labels[rows])
        opt.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        opt.step()
        if step % 250 == 0 or step == shape.steps - 1:
            log.info("judge %d/%d loss %.4f, %.0f s", step, shape.steps, loss.item(), time.monotonic() - began)
            save_checkpoint(path, state, step + 1)
    net.eval()
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in net.state_dict().items()}
    save_file(half, folder / "judge.safetensors")
    about: dict[str, Any] = {
        "subjects": [s.name for s in subjects()],
        "backgrounds": [b.name for b in BACKGROUNDS],
        "relations": list(RELATIONS),
    }
    (folder / "judge.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    about["held_out"] = accuracy(module.Judge(folder, str(device)).answers(held.images), held)
    (folder / "judge.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    log.info("judge on held-out scenes: %s", about["held_out"])


def loss_of(answers: dict[str, Tensor], shown: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the four cross entropies; subjects weigh by the number a scene shows."""
    chosen = F.binary_cross_entropy_with_logits(answers["subjects"], shown, reduction="none").sum(1).mean()
    total = chosen + F.cross_entropy(answers["background"], labels[:, 0])
    if bool((labels[:, 1] >= 0).any()):
        total = total + F.cross_entropy(answers["count"], labels[:, 1], ignore_index=-1)
    return total + 0.5 * F.cross_entropy(answers["relation"], labels[:, 2])


def accuracy(answers: dict[str, Tensor], pool: Pool) -> dict[str, float | None]:
    """Compare answers with what was composed.

    Returns:
        Shares: of shown subjects that are seen, of seen subjects that are shown, and of backgrounds, counts and
        relations that are right; None where there is nothing to be right about.
    """
    shown, labels = pool.shown.cpu().bool(), pool.labels.cpu()
    seen = answers["subjects"].sigmoid() >= 0.5
    single, paired = labels[:, 1] >= 0, labels[:, 2] > 0

    def right(name: str, k: int, rows: Tensor) -> float | None:
        agreed = (answers[name].argmax(1) == labels[:, k])[rows]
        return round(float(agreed.float().mean()), 4) if len(agreed) else None

    return {
        "images": len(shown),
        "subjects_seen": round(float((seen & shown).sum() / shown.sum()), 4),
        "seen_are_shown": round(float((seen & shown).sum() / seen.sum().clamp(min=1)), 4),
        "background": right("background", 0, labels[:, 0] >= 0),
        "count": right("count", 1, single),
        "relation": right("relation", 2, paired),
    }
