"""Makes the usual guidance scales gentle ones, and negative prompts take away what they name.

A stage of its own, after the diffusion model: a student, which begins as the trained UNet, learns from that UNet, the
teacher. The text encoder stays as it is.
"""

from __future__ import annotations

import copy
import logging
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads

from .diffusion import STEPS, noise_levels
from .loop import Average, Pace, cosine, load_checkpoint, save_checkpoint
from .text import empty_caption

if TYPE_CHECKING:
    from torch import Tensor

    from .dataset import Pairs
    from .settings import Settings

log = logging.getLogger(__name__)
WEAKEST, STRONGEST = 4.0, 10.0  # guidance scales at which negative prompts are practised
LATE = 0.4  # below this share of the steps a subject that is there can no longer be taken away
CAPTIONED = 0.75  # share of samples with their caption; the others learn to stay as they are without one


class Lesson:
    """What the student is asked, and how far off it is.

    Args:
        settings: The configuration.
        text: The text encoder.
        teacher: The UNet as it was trained.
        empty: Token ids of the empty caption, [77].
    """

    def __init__(self, settings: Settings, text: Any, teacher: Any, empty: Tensor) -> None:
        self.shape = settings.guidance
        self.text, self.teacher = text, teacher
        self.signal, self.noise = noise_levels(settings, empty.device)
        with torch.no_grad():
            self.blank = text(empty[None]).last_hidden_state

    def noisy(self, latents: Tensor, t: Tensor) -> Tensor:
        """Add the noise of steps `t` to float16 latents."""
        x = latents.float().contiguous(memory_format=torch.channels_last)
        a, s = self.signal[t].view(-1, 1, 1, 1), self.noise[t].view(-1, 1, 1, 1)
        return a * x + s * torch.randn_like(x)

    @torch.no_grad()
    def words(self, tokens: Tensor) -> Tensor:
        """Encode token ids [n, 77]."""
        encoded: Tensor = self.text(tokens.long()).last_hidden_state
        return encoded

    @torch.no_grad()
    def taught(self, x: Tensor, t: Tensor, *words: Tensor) -> tuple[Tensor, ...]:
        """Ask the teacher several things of the same noisy latents."""
        answers: Tensor = self.teacher(torch.cat([x] * len(words)), t.repeat(len(words)), torch.cat(words)).sample
        return tuple(answers.float().chunk(len(words)))

    def scale(self, student: Any, latents: Tensor, tokens: Tensor) -> Tensor:
        """Turn a scale of g into `factor`·g.

        With u and c the teacher's predictions without and with the caption, guidance draws u + g·(c - u). A student
        whose captioned prediction is u + k·(c - u), and whose other one is u, draws u + k·g·(c - u).
        """
        n = len(latents)
        t = torch.randint(STEPS, (n,), device=latents.device)
        x, words = self.noisy(latents, t), self.words(tokens)
        blank = self.blank.expand_as(words)
        c, u = self.taught(x, t, words, blank)
        captioned = torch.rand(n, device=latents.device) < CAPTIONED
        given = torch.where(captioned.view(-1, 1, 1), words, blank)
        target = torch.where(captioned.view(-1, 1, 1, 1), u + self.shape.factor * (c - u), u)
        return F.mse_loss(student(x, t, given).sample.float(), target)

    def negatives(self, student: Any, pairs: Pairs, rows: Tensor) -> Tensor:
        """Let a negative prompt take away what it names.

        Asked for A beside B and told not B, the student's guided prediction is to be the one that the teacher gives
        when asked for A alone and told not B: g·p - (g - 1)·n = k·g·w - (k·g - 1)·r. Only n learns it, by seeing more
        of B than p does; were p to learn it too, nothing would be drawn beside anything, negative prompt or not. The
        loss is that of one prediction: the guided one has g times its error.
        """
        n, device = len(rows), rows.device
        there = torch.rand(n, device=device) < 0.5
        t = (torch.rand(n, device=device) * STEPS).long()
        t = torch.where(there, (LATE * STEPS + (1 - LATE) * t).long(), t).clamp(max=STEPS - 1)
        x = self.noisy(torch.where(there.view(-1, 1, 1, 1), pairs.both[rows], pairs.rest[rows]), t)
        prompt, negative, wish, refused = (self.words(ids[rows]) for ids in pairs.ids)
        w, r = self.taught(x, t, wish, refused)
        g = torch.empty(n, 1, 1, 1, device=device).uniform_(WEAKEST, STRONGEST)
        kg = self.shape.factor * g
        with torch.no_grad():
            p = student(x, t, prompt).sample.float()
        q = student(x, t, negative).sample.float()
        return F.mse_loss((g * p - (g - 1) * q) / g, (kg * w - (kg - 1) * r) / g)


def calibrate(
    settings: Settings,
    text: Any,
    unet: Any,
    plain: tuple[Tensor, Tensor],
    pairs: Pairs,
    tokenizer: Any,
    seconds: float | None = None,
) -> Any:
    """Train the student, or resume it.

    Args:
        settings: The configuration.
        text: The trained text encoder.
        unet: The trained UNet; becomes the student.
        plain: Latents, float16 [n, channels, side, side], and their captions' token ids, int16 [n, captions, 77].
        pairs: Scenes of two subjects, and what remains without one.
        tokenizer: Gives the empty caption.
        seconds: Time to fill instead of the configured steps.

    Returns:
        The averaged student.
    """
    shape = settings.guidance
    latents, ids = plain
    device = latents.device
    fast = device.type == "cuda"
    torch.manual_seed(settings.seed + 4)
    teacher = copy.deepcopy(unet).eval().requires_grad_(requires_grad=False)
    text.eval().requires_grad_(requires_grad=False)
    lesson = Lesson(settings, text, teacher, empty_caption(tokenizer, device))
    average = Average(unet, shape.ema)
    opt = torch.optim.AdamW(unet.parameters(), lr=shape.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=fast)
    state = {"unet": unet, "average": average, "opt": opt}
    path = settings.work / "guidance.pt"
    pace = Pace(shape.steps, seconds, load_checkpoint(path, state, device))
    saved, seen = time.monotonic(), torch.zeros(2, device=device)
    for step in pace:
        opt.param_groups[0]["lr"] = shape.rate * cosine(step, pace.steps, warmup=50)
        rows = torch.randint(len(latents), (shape.batch,), device=device)
        tokens = ids[rows, torch.randint(ids.shape[1], (shape.batch,), device=device)]
        chosen = torch.randint(len(pairs.both), (shape.batch // 2,), device=device)
        opt.zero_grad(set_to_none=True)
        # One backward pass each, so that the device holds the activations of one at a time.
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            scale = lesson.scale(unet, latents[rows], tokens)
        scale.backward()  # type: ignore[no-untyped-call]
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            negatives = lesson.negatives(unet, pairs, chosen)
        (shape.negatives * negatives).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0, foreach=True)
        opt.step()
        average.update(unet, min(shape.ema, (1 + step) / (10 + step)))
        seen += torch.stack([scale.detach(), negatives.detach()])
        if step % 100 == 99 or step == pace.steps - 1:
            means = (seen / (step % 100 + 1)).tolist()
            log.info("guidance %d/%d losses %.5f and %.5f, %.0f s", step, pace.steps, *means, pace.elapsed)
            seen.zero_()
        if time.monotonic() - saved > 100 or step == pace.steps - 1:
            save_checkpoint(path, state, step + 1)
            saved = time.monotonic()
    average.into(unet)
    blend(unet, teacher, shape.blend)
    return unet.eval()


@torch.no_grad()
def blend(student: Any, teacher: Any, share: float) -> None:
    """Move a fine-tuned network back towards what it began as, along the straight line between their weights.

    Wortsman et al., 2022 (WiSE-FT): in between, most of what was learned is there and little of what was known is lost.

    Args:
        student: Becomes the blend.
        teacher: What it began as.
        share: Share of the student.
    """
    for new, old in zip(student.parameters(), teacher.parameters(), strict=True):
        new.lerp_(old, 1 - share)
