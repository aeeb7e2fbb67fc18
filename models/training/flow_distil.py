"""Embeds guidance in the flow-matching model, and makes negative prompts take away what they name.

A stage of its own: a student, which begins as the trained transformer, learns from that transformer, the teacher. The
text encoders stay as they are.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads

from .flow import (
    EDGES,
    FULL_SHARE,
    UNGUIDED,
    FlowModel,
    compiled_blocks,
    noisy,
    out_of_time,
    text_length,
    times,
)
from .loop import Average, Clock, decayed, load_checkpoint, rank_and_world, save_checkpoint, share_gradients
from .optimizer import optimizers

if TYPE_CHECKING:
    from torch import Tensor

    from .flow_data import Sizes, Tokenizer
    from .settings import DistilSettings, Settings

log = logging.getLogger(__name__)
LATE = 0.4  # below this share of noise a subject that is there can no longer be taken away
LOGGED = 100  # steps between two lines of the log
CAPTIONED = 0.9  # share of samples with their caption


def strength(shape: DistilSettings, guidance: Tensor) -> Tensor:
    """Return what a guidance scale comes to, in steps of classifier-free guidance: 1 at 1, and ever less above it.

    People ask for 3.5 and for 9; this way neither burns.
    """
    return 1 + (shape.strongest - 1) * (1 - torch.exp(-(guidance - 1) / shape.bend))


class Lesson:
    """What the student is asked, and how far off it is.

    Args:
        settings: The configuration.
        teacher: The model as it was trained.
        empty: Token ids of the empty caption, [length].
    """

    def __init__(self, settings: Settings, teacher: FlowModel, empty: Tensor) -> None:
        self.settings, self.shape, self.teacher, self.empty = settings, settings.distil, teacher, empty

    @torch.no_grad()
    def taught(self, x: Tensor, t: Tensor, size: tuple[int, int], *words: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Ask the teacher several things of the same noisy latents."""
        unguided = torch.full_like(t, UNGUIDED)
        return tuple(self.teacher(x, t, unguided, said, size) for said in words)

    @torch.no_grad()
    def words(self, ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Encode token ids [n, length]."""
        return self.teacher.words(ids, length)

    def scale(self, student: FlowModel, latents: Tensor, ids: Tensor, size: tuple[int, int], length: int) -> Tensor:
        """Predict at a guidance scale of g what the teacher predicts with guidance of strength k(g): u + k·(c - u)."""
        n, device = len(latents), latents.device
        shape = self.settings.flow
        t = times(n, shape.mean, shape.deviation, device)
        x, _ = noisy(latents.float(), t)
        captioned = torch.rand(n, device=device) < CAPTIONED
        ids = torch.where(captioned.view(-1, 1), ids, self.empty)
        said, blank = self.words(ids, length), self.words(self.empty.expand_as(ids), length)
        c, u = self.taught(x, t, size, said, blank)
        g = torch.empty(n, device=device).uniform_(1, self.shape.highest)
        target = u + strength(self.shape, g).view(-1, 1, 1) * (c - u)
        return F.mse_loss(student(x, t, g, said, size), target)

    def negatives(self, student: FlowModel, both: Tensor, rest: Tensor, ids: Tensor, size: tuple[int, int]) -> Tensor:
        """Let a negative prompt take away what it names.

        The pipeline draws n + s·(p - n), where p and n are the student's predictions for the prompt and the negative
        prompt, and s is `true_cfg_scale`. Asked for A beside B and told not B, that is to be the guided prediction for
        A alone, r + k·(w - r). Only n learns it, by seeing more of B than p does; were p to learn it too, nothing
        would be drawn beside anything, negative prompt or not.

        Args:
            student: What learns.
            both: Packed latents of scenes of two subjects.
            rest: Packed latents of scenes without what the negative prompt names.
            ids: Token ids, [n, 4, length]: prompt, negative prompt, wish, what is refused.
            size: Height and width in tokens.
        """
        n, device = len(both), both.device
        there = torch.rand(n, device=device) < 0.5
        t = torch.rand(n, device=device)
        t = torch.where(there, LATE + (1 - LATE) * t, t)
        x, _ = noisy(torch.where(there.view(-1, 1, 1), both, rest).float(), t)
        length = self.settings.flow.length
        prompt, negative, wish, refused = (self.words(part, length) for part in ids.unbind(1))
        w, r = self.taught(x, t, size, wish, refused)
        g = torch.empty(n, device=device).uniform_(1, self.shape.highest)
        s = torch.empty(n, 1, 1, device=device).uniform_(1.5, self.shape.true_cfg)
        target = r + strength(self.shape, g).view(-1, 1, 1) * (w - r)
        with torch.no_grad():
            p = student(x, t, g, prompt, size)
        q = student(x, t, g, negative, size)
        return F.mse_loss(q, (s * p - target) / (s - 1), reduction="none").mul((s - 1) ** 2 / s**2).mean()


def distil(
    settings: Settings,
    model: FlowModel,
    sizes: list[Sizes],
    pairs: tuple[Tensor, Tensor, Tensor],
    tokenizer: Tokenizer,
    until: float | None = None,
    ends: float | None = None,
    *,
    fast: bool = False,
) -> FlowModel | None:
    """Train the student, or resume it.

    Args:
        settings: The configuration.
        model: The trained model; becomes the teacher.
        sizes: This process's scenes.
        pairs: What `flow_data.encode_pairs` returned.
        tokenizer: For the empty caption.
        until: Time (of `time.time`) at which to leave a checkpoint and stop.
        ends: Time (of `time.time`) at which the stage is to have ended, instead of the configured steps.
        fast: Compile the blocks.

    Returns:
        The averaged student, with the teacher's text encoders; or None where the time came first.
    """
    shape, device = settings.distil, sizes[0].latents.device
    cuda = device.type == "cuda"
    rank, world = rank_and_world()
    batch = shape.batch // world
    student = FlowModel(settings, tokenizer).to(device)
    student.load_state_dict(model.state_dict())
    for part in (model, student.t5, student.clip):
        part.requires_grad_(requires_grad=False)
    net = student.transformer
    lesson = Lesson(settings, model, torch.from_numpy(tokenizer([""])[0]).to(device))
    average = Average(net, shape.ema)
    parameters = list(net.parameters())
    inner, outer = optimizers([student], shape.rate, EDGES)
    clock = Clock(shape.steps, ends)
    state = {"net": net, "average": average, "inner": inner, "outer": outer, "clock": clock}
    path = settings.work / "distil.pt"
    start = load_checkpoint(path, state, device)
    model.compiled = student.compiled = compiled_blocks(settings, batch) if fast else None
    torch.manual_seed(settings.seed + 24 + 1000 * start + rank)
    both, rest, refused = pairs
    seen, counted = torch.zeros(2, device=device), 0
    began = saved = time.monotonic()
    step = start
    for step, share in clock.run(start):
        if step % 20 == 0 and out_of_time(until, device):
            if rank == 0:
                save_checkpoint(path, state, step)
            return None
        for group in (*inner.param_groups, *outer.param_groups):
            group["lr"] = shape.rate * decayed(share, step, warmup=50)
        data = sizes[{0: 1, 5: 2}.get(step % 10, 0) % len(sizes)]
        full = step % settings.flow.full_every == 1
        length = settings.flow.full_length if full else text_length(settings, data.height * data.width)
        number = batch // FULL_SHARE if full else batch
        rows = torch.randint(len(data.latents), (number,), device=device)
        ids = data.ids[rows, torch.randint(data.ids.shape[1], (number,), device=device)]
        chosen = torch.randint(len(both), (batch,), device=device)
        inner.zero_grad(set_to_none=True)
        outer.zero_grad(set_to_none=True)
        # One backward pass each, so that the device holds the activations of one at a time.
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            scale = lesson.scale(student, data.latents[rows], ids, (data.height, data.width), length)
        scale.backward()  # type: ignore[no-untyped-call]
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            square = (sizes[0].height, sizes[0].width)
            negatives = lesson.negatives(student, both[chosen], rest[chosen], refused[chosen], square)
        (shape.negatives * negatives).backward()  # type: ignore[no-untyped-call]
        share_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        inner.step()
        outer.step()
        average.update(net, min(shape.ema, (1 + step) / (10 + step)))
        seen, counted = seen + torch.stack([scale.detach(), negatives.detach()]), counted + 1
        if counted == LOGGED:
            means = (seen / counted).tolist()
            elapsed = time.monotonic() - began
            log.info("distil step %d (%.0f %%), losses %.5f, %.5f, %.0f s", step + 1, 100 * share, *means, elapsed)
            seen, counted = torch.zeros_like(seen), 0
        if rank == 0 and time.monotonic() - saved > 120:
            save_checkpoint(path, state, step + 1)
            saved = time.monotonic()
    if rank == 0:
        save_checkpoint(path, state, step + 1)
    average.into(net)
    model.compiled = student.compiled = None
    return student.eval()
