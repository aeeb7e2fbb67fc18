"""Qwen-Image: one text encoder whose output varies in length, true guidance with its norm kept, a VAE of videos.

The transformer's ``forward`` copies the length of masked prompts to the device, which breaks the capture of a graph.
Here its own modules are called in the order of that ``forward``.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImageRequest
from kubediffusion.worker.families.base import Conditioning, Defaults, noise
from kubediffusion.worker.families.flow import FlowFamily
from kubediffusion.worker.families.text import TokenCounts, bucket, padded, present

_TOKENS = 512
"""Tokens of a prompt: the default of the pipeline's call."""

_BUCKET = 64
"""Tokens by which prompts that share a batch may differ at most."""


class QwenImage(FlowFamily):
    """``QwenImagePipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline",)
    calls_denoiser: ClassVar[bool] = False
    defaults: ClassVar[Defaults] = Defaults(50, 4.0)

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        tokenizer = copy.deepcopy(pipeline.tokenizer)
        template, dropped = pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx
        self._counts = TokenCounts(
            lambda text: len(tokenizer(template.format(text), truncation=False, verbose=False).input_ids) - dropped
        )

    @classmethod
    def mismatch(cls, pipeline: Any) -> str | None:
        """Refuse a transformer that tells reference images from the one that is made, or is told the guidance scale."""
        config = pipeline.transformer.config
        unknown = ("zero_cond_t", "use_layer3d_rope", "use_additional_t_cond", "guidance_embeds")
        told = next((name for name in unknown if config.get(name, False)), None)
        return None if told is None else f"its transformer has {told}"

    def guidance(self, request: ImageRequest) -> GuidanceKind:
        """Return what ``guidanceScale`` does: it is the call's ``true_cfg_scale``, which needs a negative prompt."""
        return GuidanceKind.NONE if request.negative_prompt is None else super().guidance(request)

    def text_length(self, request: ImageRequest, guidance: GuidanceKind) -> int:
        """Return how many tokens the batch holds for each prompt: those of the longer one, rounded up."""
        texts = [request.prompt, request.negative_prompt or ""]
        used = texts if guidance is GuidanceKind.CFG else texts[:1]
        return bucket(max(map(self._counts.of, used)), _BUCKET, _TOKENS)

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts, ``[rows, tokens, channels]``, and which tokens are there: ``[rows, tokens]``."""
        prompts, masks = [], []
        for text in [request.negative_prompt or "", request.prompt] if key.guided else [request.prompt]:
            prompt, _ = self.pipeline.encode_prompt(prompt=text, device=self.device, max_sequence_length=_TOKENS)
            prompts.append(padded(prompt, key.text_length))
            masks.append(present(prompt.shape[1], key.text_length, self.device))
        return {"prompts": torch.cat(prompts), "masks": torch.cat(masks)}

    def start(self, request: ImageRequest, key: BatchKey) -> torch.Tensor:
        """Make an image's noise, packed: ``[1, tokens, 4 * channels]``."""
        height, width = self.grid(key)
        channels = self.denoiser.config.in_channels // 4
        latents = noise((1, channels, 2 * height, 2 * width), request.seed, self.denoiser_dtype)
        packed: torch.Tensor = self.pipeline._pack_latents(  # noqa: SLF001 - what the call uses
            latents, 1, channels, 2 * height, 2 * width
        )
        return packed

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
        model, (height, width) = self.denoiser, self.grid(key)
        image = model.img_in(latents)
        text = model.txt_in(model.txt_norm(told["prompts"]))
        time = model.time_text_embed(timesteps.to(latents.dtype) / 1000, image, None)
        rope = model.pos_embed([[(1, height, width)]], max_txt_seq_len=text.shape[1], device=image.device)
        for block in model.transformer_blocks:
            text, image = block(
                hidden_states=image,
                encoder_hidden_states=text,
                encoder_hidden_states_mask=told["masks"],
                temb=time,
                image_rotary_emb=rope,
            )
        output: torch.Tensor = model.proj_out(model.norm_out(image, time))
        return output

    def guide(self, without: torch.Tensor, given: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        """Guide, and rescale each token to the norm that it has without guidance."""
        guided = super().guide(without, given, guidance)
        rescaled: torch.Tensor = guided * (given.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return rescaled

    def vae_input(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:
        """Unpack an image's latents, and scale them by channel: ``[1, channels, 1, height, width]``."""
        unpacked = self.pipeline._unpack_latents(  # noqa: SLF001 - what the call uses
            latents, key.height, key.width, self.pipeline.vae_scale_factor
        )
        return scaled_by_channel(unpacked, self.pipeline.vae)


def scaled_by_channel(latents: torch.Tensor, vae: Any) -> torch.Tensor:
    """Return latents with the VAE's mean and deviation of each channel: ``[1, channels, frames, height, width]``."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    latents = latents.to(vae.dtype)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, latents.dtype)
    # As diffusers' pipelines compute it.
    inverse = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents.device, latents.dtype)
    return latents / inverse + mean
