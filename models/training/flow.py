"""The flow-matching model: a small FLUX.1 with its text encoders, trained together from scratch."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - the name everyone reads
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from .flow_text import new_clip, new_t5
from .loop import Average, Pace, cosine, load_checkpoint, rank_and_world, save_checkpoint, share_gradients
from .optimizer import optimizers

if TYPE_CHECKING:
    from pathlib import Path

    from .flow_data import Sizes, Tokenizer
    from .settings import Settings

log = logging.getLogger(__name__)
EDGES = ("embedding", "shared", "embed_tokens", "relative_attention_bias", "x_embedder", "transformer.proj_out")
"""What enters or leaves the networks, by parts of names: AdamW's, not Muon's."""
FULL_COSTS = 1.12  # steps with all text tokens make the whole that much longer than its first steps say
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
        for block in (*net.transformer_blocks, *net.single_transformer_blocks):
            text, image = block(
                hidden_states=image, encoder_hidden_states=text, temb=time_and_text, image_rotary_emb=rope
            )
        velocity: Tensor = net.proj_out(net.norm_out(image, time_and_text))
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


def compile_blocks(settings: Settings, model: FlowModel) -> None:
    """Compile the transformer's blocks on a GPU, where the configuration says so: each kind once, for all like it."""
    if settings.flow.compile and next(model.parameters()).is_cuda:
        # One for each length of text and image, with and without gradients; the default of 8 is too few.
        torch._dynamo.config.recompile_limit = 64  # noqa: SLF001 - it has no public name
        model.transformer.compile_repeated_blocks(dynamic=False)


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
    seconds: float | None = None,
    initial: Path | None = None,
) -> FlowModel | None:
    """Train the text encoders and the transformer, or resume them.

    Args:
        settings: The configuration.
        sizes: This process's scenes: squares, then the other sizes.
        tokenizer: For the empty caption.
        until: Time (of `time.time`) at which to leave a checkpoint and stop.
        steps: How many steps, instead of the configured ones.
        seconds: Time to fill in all with the steps, instead.
        initial: A pipeline folder whose weights to begin with.

    Returns:
        The averaged model, or None where the time came first.
    """
    device, shape = sizes[0].latents.device, settings.flow
    fast = device.type == "cuda"
    rank, world = rank_and_world()
    batch = shape.batch // world
    torch.manual_seed(settings.seed + 21)
    model = FlowModel(settings, tokenizer).to(device)
    if initial is not None:
        model.begin_with(initial)
    average = Average(model, shape.ema)
    parameters = list(model.parameters())
    inner, outer = optimizers([model], shape.rate, EDGES)
    state = {"model": model, "average": average, "inner": inner, "outer": outer}
    path = settings.work / "flow.pt"
    start = load_checkpoint(path, state, device)
    compile_blocks(settings, model)
    torch.manual_seed(settings.seed + 22 + 1000 * start + rank)
    empty = torch.from_numpy(tokenizer([""])[0]).to(device)
    guidance = torch.full((batch,), UNGUIDED, device=device)
    began = saved = time.monotonic()
    seen = torch.zeros((), device=device)
    pace = Pace(steps or shape.steps, None if seconds is None else seconds / FULL_COSTS, start)
    for step in pace:
        if step % 20 == 0 and out_of_time(until, device):
            if rank == 0:
                save_checkpoint(path, state, step)
            return None
        for group in (*inner.param_groups, *outer.param_groups):
            group["lr"] = shape.rate * cosine(step, pace.steps, warmup=400)
        data = sizes[{0: 1, 5: 2}.get(step % 10, 0) % len(sizes)]
        full = step >= shape.full_from * pace.steps and step % shape.full_every == 0
        rows = torch.randint(len(data.latents), (batch,), device=device)
        ids = data.ids[rows, torch.randint(data.ids.shape[1], (batch,), device=device)]
        ids = torch.where(torch.rand(batch, 1, device=device) < shape.empty, empty, ids)
        t = times(batch, shape.mean, shape.deviation, device)
        x, target = noisy(data.latents[rows].float(), t)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            words = model.words(ids, shape.full_length if full else shape.length)
            loss = F.mse_loss(model(x, t, guidance, words, (data.height, data.width)), target)
        inner.zero_grad(set_to_none=True)
        outer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        share_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        inner.step()
        outer.step()
        average.update(model, min(shape.ema, (1 + step) / (10 + step)))
        seen += loss.detach()
        if step % 200 == 199 or step == pace.steps - 1:
            log.info(
                "flow %d/%d loss %.4f, %.0f s",
                step + 1,
                pace.steps,
                seen.item() / (step % 200 + 1),
                time.monotonic() - began,
            )
            seen.zero_()
        if rank == 0 and (time.monotonic() - saved > 120 or step == pace.steps - 1):
            save_checkpoint(path, state, step + 1)
            saved = time.monotonic()
    average.into(model)
    return model.eval()
