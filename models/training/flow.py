"""The flow-matching model: a small FLUX.1 with its text encoders, trained together from scratch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - the name everyone reads
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from . import flow_blocks
from .flow_text import new_clip, new_t5
from .loop import Average, Clock, decayed, load_checkpoint, rank_and_world, save_checkpoint, share_gradients
from .optimizer import optimizers

if TYPE_CHECKING:
    from pathlib import Path

    from .flow_data import Sizes, Tokenizer
    from .settings import Settings

log = logging.getLogger(__name__)
EDGES = ("embedding", "shared", "embed_tokens", "relative_attention_bias", "x_embedder", "transformer.proj_out")
"""What enters or leaves the networks, by parts of names: AdamW's, not Muon's."""
FULL_SHARE = 3  # steps with all text tokens have that many times fewer samples, and take about as long
LOGGED = 200  # steps between two lines of the log
UNGUIDED = 1.0  # the guidance scale that the model sees before it learns others


class FlowModel(nn.Module):
    """Text encoders and transformer, asked together.

    Args:
        settings: The configuration.
        tokenizer: For the sizes of the vocabularies.
    """

    def __init__(self, settings: Settings, tokenizer: Tokenizer) -> None:
        super().__init__()
        shape = settings.flow
        self.t5 = new_t5(settings, tokenizer.clip)
        self.clip = new_clip(settings, tokenizer.clip)
        kind: Any = FluxTransformer2DModel
        self.transformer = kind(
            patch_size=1,
            in_channels=4 * settings.flow_vae.latent_channels,
            num_layers=shape.double,
            num_single_layers=shape.single,
            attention_head_dim=shape.head,
            num_attention_heads=shape.heads,
            joint_attention_dim=shape.text_width,
            pooled_projection_dim=shape.pooled_width,
            guidance_embeds=True,
            axes_dims_rope=tuple(shape.rope),
        )
        self.end = tokenizer.end
        self.ropes: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self.compiled: Compiled | None = None
        # Blocks that begin as the identity (adaLN-Zero, Peebles & Xie, 2023).
        for name, part in self.transformer.named_modules():
            if name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")) or (
                name == "proj_out"
            ):
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)

    def words(self, ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Encode token ids [n, kept], padded to a length for T5: [n, length, width] and pooled [n, width].

        CLIP's attention is causal, so that what pads a text does not matter to its summary.
        """
        ids = ids.long()
        states = self.t5(F.pad(ids, (0, length - ids.shape[1]), value=self.end)).last_hidden_state
        return states, self.clip(ids).pooler_output

    def rope(self, length: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the rotary embedding of text and image tokens, which differ by row and column only."""
        key = (length, height, width)
        if key not in self.ropes:
            device = self.transformer.proj_out.weight.device
            ids = torch.zeros(length + height * width, 3, device=device)
            grid = ids[length:].view(height, width, 3)
            grid[..., 1] = torch.arange(height, device=device).view(-1, 1)
            grid[..., 2] = torch.arange(width, device=device).view(1, -1)
            self.ropes[key] = self.transformer.pos_embed(ids)
        return self.ropes[key]

    def forward(
        self, x: Tensor, t: Tensor, guidance: Tensor, words: tuple[Tensor, Tensor], size: tuple[int, int]
    ) -> Tensor:
        """Predict the velocity, noise minus data: what the transformer's own forward does, its time in full precision.

        Samples of the number and lengths that blocks were compiled for go through those, all others through the same
        functions uncompiled.

        Args:
            x: Packed noisy latents, [n, tokens, 4·channels].
            t: Share of noise, [n].
            guidance: Guidance scale, [n].
            words: What `words` returned.
            size: Height and width in tokens.
        """
        net: Any = self.transformer
        states, pooled = words
        rope = self.rope(states.shape[1], *size)
        image = net.x_embedder(x)
        time_and_text = net.time_text_embed(t * 1000, guidance * 1000, pooled)
        text = net.context_embedder(states)
        double, single = flow_blocks.double, flow_blocks.single
        if self.compiled is not None and (len(x), text.shape[1] + image.shape[1]) == self.compiled.shape:
            double, single = self.compiled.double, self.compiled.single
        with torch.autocast(x.device.type, enabled=False):
            condition = F.silu(time_and_text).to(image.dtype)
            text = text.to(image.dtype)
            for block in net.transformer_blocks:
                image, text = double(image, text, condition, *rope, *flow_blocks.double_weights(block))
            both = torch.cat([text, image], 1)
            for block in net.single_transformer_blocks:
                both = single(both, condition, *rope, *flow_blocks.single_weights(block))
        velocity: Tensor = net.proj_out(net.norm_out(both[:, text.shape[1] :], time_and_text))
        return velocity.float()

    def begin_with(self, folder: Path) -> None:
        """Take over the weights of a pipeline folder."""
        parts: dict[str, Any] = {
            "t5": (T5EncoderModel, "text_encoder_2"),
            "clip": (CLIPTextModel, "text_encoder"),
            "transformer": (FluxTransformer2DModel, "transformer"),
        }
        for name, (kind, place) in parts.items():
            getattr(self, name).load_state_dict(kind.from_pretrained(folder / place).float().state_dict())


@dataclass(frozen=True)
class Compiled:
    """The blocks' functions, compiled.

    Attributes:
        shape: How many samples, and of how many tokens of text and image together, they were compiled for.
        double: `flow_blocks.double`.
        single: `flow_blocks.single`.
    """

    shape: tuple[int, int]
    double: Any
    single: Any


def compiled_blocks(settings: Settings, batch: int) -> Compiled:
    """Compile the transformer's blocks for a number of samples; the first calls take a minute.

    Each kind of block is one graph for all like it. Squares and the other sizes have as many tokens of text and image
    together (see `text_length`), so that the single-stream blocks are compiled once for all of them.
    """
    # One for each length of text, with and without gradients; the default of 8 is too few.
    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001 - it has no public name
    width, height = settings.flow.sizes[0]
    compiled = partial(torch.compile, dynamic=False, fullgraph=True)
    tokens = width * height // 256 + settings.flow.length
    return Compiled((batch, tokens), compiled(flow_blocks.double), compiled(flow_blocks.single))


def text_length(settings: Settings, tokens: int) -> int:
    """Return how many text tokens go with so many image tokens: together as many as with a square."""
    width, height = settings.flow.sizes[0]
    return max(settings.flow.length + width * height // 256 - tokens, settings.flow.length)


def new_scheduler() -> Any:
    """Return the scheduler that ships: Euler's method, its sigmas shifted by the number of tokens as FLUX.1's are."""
    kind: Any = FlowMatchEulerDiscreteScheduler
    return kind(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def times(number: int, mean: float, deviation: float, device: torch.device) -> Tensor:
    """Draw shares of noise: mostly logit-normal (Esser et al., 2024), one in eight uniform, each evenly spread."""
    even = (torch.arange(number, device=device) / number + torch.rand((), device=device)) % 1.0
    t = torch.sigmoid(mean + deviation * torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))
    rest = t[::8]
    t[::8] = (torch.arange(len(rest), device=device) / len(rest) + torch.rand((), device=device)) % 1.0
    return t


def noisy(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mix latents with noise along a straight line (Liu et al., 2023); return that and the velocity."""
    noise = torch.randn_like(x)
    share = t.view(-1, 1, 1)
    return (1 - share) * x + share * noise, noise - x


def out_of_time(until: float | None, device: torch.device) -> bool:
    """Say whether a time has come, alike in all processes."""
    if until is None:
        return False
    late = torch.tensor(float(time.time() > until), device=device)
    if rank_and_world()[1] > 1:
        dist.all_reduce(late)
    return bool(late.item() > 0)


def train(
    settings: Settings,
    sizes: list[Sizes],
    tokenizer: Tokenizer,
    until: float | None = None,
    steps: int | None = None,
    ends: float | None = None,
    initial: Path | None = None,
    over: float = 0.0,
    *,
    fast: bool = False,
) -> FlowModel | None:
    """Train the text encoders and the transformer, or resume them.

    Args:
        settings: The configuration.
        sizes: This process's scenes: squares, then the other sizes.
        tokenizer: For the empty caption.
        until: Time (of `time.time`) at which to leave a checkpoint and stop.
        steps: How many steps, instead of the configured ones.
        ends: Time (of `time.time`) at which the stage is to have ended, instead.
        initial: A pipeline folder whose weights to begin with.
        over: Share of the stage that is over already where there is no checkpoint.
        fast: Compile the blocks.

    Returns:
        The averaged model, or None where the time came first.
    """
    device, shape = sizes[0].latents.device, settings.flow
    rank, world = rank_and_world()
    batch = shape.batch // world
    torch.manual_seed(settings.seed + 21)
    model = FlowModel(settings, tokenizer).to(device)
    if initial is not None:
        model.begin_with(initial)
    average = Average(model, shape.ema)
    parameters = list(model.parameters())
    inner, outer = optimizers([model], shape.rate, EDGES)
    clock = Clock(steps or shape.steps, ends, over)
    state = {"model": model, "average": average, "inner": inner, "outer": outer, "clock": clock}
    path = settings.work / "flow.pt"
    start = load_checkpoint(path, state, device)
    model.compiled = compiled_blocks(settings, batch) if fast else None
    torch.manual_seed(settings.seed + 22 + 1000 * start + rank)
    empty = torch.from_numpy(tokenizer([""])[0]).to(device)
    began = saved = time.monotonic()
    seen, counted = torch.zeros((), device=device), 0
    step = start
    for step, part in clock.run(start):
        if step % 20 == 0 and out_of_time(until, device):
            if rank == 0:
                save_checkpoint(path, state, step)
            return None
        for group in (*inner.param_groups, *outer.param_groups):
            group["lr"] = shape.rate * decayed(part, step, warmup=200)
        data = sizes[{0: 1, 5: 2}.get(step % 10, 0) % len(sizes)]
        full = part >= shape.full_from and step % shape.full_every == 1
        number = batch // FULL_SHARE if full else batch
        rows = torch.randint(len(data.latents), (number,), device=device)
        ids = data.ids[rows, torch.randint(data.ids.shape[1], (number,), device=device)]
        ids = torch.where(torch.rand(number, 1, device=device) < shape.empty, empty, ids)
        t = times(number, shape.mean, shape.deviation, device)
        x, target = noisy(data.latents[rows].float(), t)
        guidance = torch.full((number,), UNGUIDED, device=device)
        length = shape.full_length if full else text_length(settings, data.height * data.width)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.mse_loss(model(x, t, guidance, model.words(ids, length), (data.height, data.width)), target)
        inner.zero_grad(set_to_none=True)
        outer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        share_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        inner.step()
        outer.step()
        average.update(model, min(shape.ema, (1 + step) / (10 + step)))
        seen, counted = seen + loss.detach(), counted + 1
        if counted == LOGGED:
            mean, elapsed = seen.item() / counted, time.monotonic() - began
            done, each = 100 * part, 1000 * elapsed / (step + 1 - start)
            log.info("flow step %d (%.0f %%), loss %.4f, %.0f s, %.1f ms each", step + 1, done, mean, elapsed, each)
            seen, counted = torch.zeros_like(seen), 0
        if rank == 0 and time.monotonic() - saved > 120:
            save_checkpoint(path, state, step + 1)
            saved = time.monotonic()
    if rank == 0:
        save_checkpoint(path, state, step + 1)
    average.into(model)
    model.compiled = None
    return model.eval()
