"""Z-Image: one sequence of image and caption, captions of any length side by side, guidance added to the caption's.

diffusers' transformer takes lists, whose lengths are Python's: no graph could be captured of its ``forward``. Here its
own modules are called in the order of that ``forward``, on tensors that hold captions of different lengths, and images
of different sizes that the transformer pads to as many tokens: 1024 by 768 beside 768 by 1024.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImageRequest
from kubediffusion.worker.families.base import Conditioning, Defaults, noise
from kubediffusion.worker.families.flow import FlowFamily
from kubediffusion.worker.families.text import TokenCounts, bucket, padded

_TOKENS = 512
"""Tokens of a caption: the default of the pipeline's call."""

_MULTIPLE = 32
"""Image and caption are each padded to a multiple of so many tokens, with a learned one: the transformer's
``SEQ_MULTI_OF``."""

_PATCH = 2
"""Latents of a token's side, by default of the transformer's call."""


_SHIFT = 6.0
"""Shift of the schedule of a model that was not distilled; Turbo's is 3."""


class ZImage(FlowFamily):
    """``ZImagePipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("ZImagePipeline",)
    calls_denoiser: ClassVar[bool] = False
    defaults: ClassVar[Defaults] = Defaults(50, 4.0, 1024, 1024)
    distilled: ClassVar[Defaults | None] = Defaults(9, 0.0, 1024, 1024)
    guided_above: ClassVar[int] = 0

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        tokenizer = copy.deepcopy(pipeline.tokenizer)

        def count(text: str) -> int:
            messages = [{"role": "user", "content": text}]
            chat = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            return len(tokenizer(chat, truncation=False, verbose=False).input_ids)

        self._counts = TokenCounts(count)

    @classmethod
    def mismatch(cls, pipeline: Any) -> str | None:
        """Refuse a transformer that has no layers for tokens of two by two latents, or takes images."""
        config = pipeline.transformer.config
        if _PATCH not in config.all_patch_size or 1 not in config.all_f_patch_size:
            return f"its transformer has patches of {config.all_patch_size}"
        return "its transformer takes images" if config.siglip_feat_dim is not None else None

    def is_distilled(self) -> bool:
        """Return whether it is Z-Image-Turbo, by its schedule: nothing else in its configuration tells it apart."""
        return bool(self.pipeline.scheduler.config.shift < _SHIFT)

    def size_multiple(self) -> int:
        """Return the side of a token in pixels."""
        return self.token_side()

    def batch_key(self, key: BatchKey) -> BatchKey:
        """Return the key of a row of as many tokens as the transformer pads the image to, which are computed anyway."""
        height, width = self.grid(key)
        tokens, side = -(-height * width // _MULTIPLE) * _MULTIPLE, self.token_side()
        return replace(key, width=tokens * side, height=side)

    def text_length(self, request: ImageRequest, guidance: GuidanceKind) -> int:
        """Return how many tokens the batch holds for a caption: those of the longer, padded as the transformer does."""
        texts = [request.prompt, request.negative_prompt or ""]
        used = texts if guidance is GuidanceKind.CFG else texts[:1]
        return bucket(max(map(self._counts.of, used)), _MULTIPLE, _TOKENS)

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's captions, ``[rows, tokens, channels]``, count their tokens, ``[rows]``, and the image's.

        The latter by row and column, ``[rows, 2]``.
        """
        captions, negatives = self.pipeline.encode_prompt(
            prompt=[request.prompt],
            negative_prompt=[request.negative_prompt or ""],
            do_classifier_free_guidance=key.guided,
            device=self.device,
            max_sequence_length=_TOKENS,
        )
        rows = [*negatives, *captions]
        return {
            "captions": torch.cat([padded(caption[None], key.text_length) for caption in rows]),
            "tokens": torch.tensor([len(caption) for caption in rows], device=self.device),
            "grid": torch.tensor([self.grid(key)] * len(rows), device=self.device),
        }

    def start(self, request: ImageRequest, key: BatchKey) -> torch.Tensor:
        """Make an image's noise, in tokens: ``[1, tokens, patch * patch * channels]``, float32 whatever the model's.

        The transformer's padding is zeros here: a learned token takes its place in each step.
        """
        height, width = self.grid(key)
        latents = noise((self.denoiser.in_channels, _PATCH * height, _PATCH * width), request.seed, torch.float32)
        return padded(_patched(latents), -(-height * width // _MULTIPLE) * _MULTIPLE)

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        _guidance: torch.Tensor,
        told: Conditioning,
        _shared: Conditioning,
        key: BatchKey,
    ) -> torch.Tensor:
        """Call the transformer's modules: see :meth:`ModelFamily.denoise`."""
        model = self.denoiser
        patches = f"{_PATCH}-1"
        time = model.t_embedder((1000 - timesteps) / 1000 * model.t_scale).type_as(latents)
        # A slot that is empty has no tokens, and attention to nothing is no number.
        tokens = told["tokens"].clamp(min=1)
        lengths = (tokens + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE
        places = torch.arange(key.text_length, device=latents.device)
        # Where no caption is shorter than another, all is attended to.
        heeded = places < lengths[:, None] if key.guided else None

        image = model.all_x_embedder[patches](latents)
        drawn = torch.arange(image.shape[1], device=latents.device) < told["grid"].prod(dim=1, keepdim=True)
        image = torch.where(drawn[..., None], image, model.x_pad_token.to(image.dtype))
        image_rope = _rope(model, _image_ids(lengths, told["grid"][:, 1:], drawn))
        for layer in model.noise_refiner:
            image = layer(image, None, image_rope, time)

        caption = model.cap_embedder(told["captions"])
        caption = torch.where((places < tokens[:, None])[..., None], caption, model.cap_pad_token.to(caption.dtype))
        ids = torch.stack([places + 1, torch.zeros_like(places), torch.zeros_like(places)], dim=-1)
        caption_rope = _rope(model, ids.expand(len(caption), -1, -1))
        for layer in model.context_refiner:
            caption = layer(caption, heeded, caption_rope)

        sequence = torch.cat([image, caption], dim=1)
        rope = torch.cat([image_rope, caption_rope], dim=1)
        if heeded is not None:
            heeded = torch.cat([heeded.new_ones(image.shape[:2]), heeded], dim=1)
        for layer in model.layers:
            sequence = layer(sequence, heeded, rope, time)
        output: torch.Tensor = model.all_final_layer[patches](sequence, c=time)[:, : image.shape[1]]
        # The transformer's velocity points to the noise's other side.
        return -output

    def guide(self, without: torch.Tensor, given: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        """Add guidance to the output for the caption: a scale of 0 is none."""
        return given + guidance * (given - without)

    def vae_input(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:
        """Put an image's tokens where they belong, and scale them: ``[1, channels, ...]``, by latents."""
        height, width = self.grid(key)
        return super().vae_input(_unpatched(latents[:, : height * width], height, width), key)


def _image_ids(lengths: torch.Tensor, width: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Return the rotary ids of images' tokens, which begin after their captions': ``[rows, tokens, 3]``.

    Args:
        lengths: Tokens of the captions, padded: ``[rows]``.
        width: Tokens of a line of each image: ``[rows, 1]``.
        drawn: Which tokens are of the image, ``[rows, tokens]``; those of the padding are all at zero.
    """
    # A slot that is empty has no lines.
    places, line = torch.arange(drawn.shape[1], device=drawn.device), width.clamp(min=1)
    ids = torch.stack([(lengths + 1)[:, None].expand_as(drawn), places // line, places % line], dim=-1)
    return torch.where(drawn[..., None], ids, 0)


def _rope(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the rotary embeddings of ids, ``[rows, tokens, 3]``, as complex numbers: ``[rows, tokens, channels]``."""
    embedded: torch.Tensor = model.rope_embedder(ids.flatten(0, 1)).view(*ids.shape[:2], -1)
    return embedded


def _patched(latents: torch.Tensor) -> torch.Tensor:
    """Turn ``[rows, channels, height, width]`` into ``[rows, tokens, patch * patch * channels]``."""
    rows, channels, height, width = latents.shape
    split = latents.view(rows, channels, height // _PATCH, _PATCH, width // _PATCH, _PATCH)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(rows, -1, _PATCH * _PATCH * channels)


def _unpatched(output: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Turn ``[rows, height * width, patch * patch * channels]`` into ``[rows, channels, ...]``, by latents."""
    split = output.view(len(output), height, width, _PATCH, _PATCH, -1)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(len(output), -1, _PATCH * height, _PATCH * width)
