"""What families have in common whose images may begin from an image: its latents, and the step to begin at.

It is what diffusers' ``…Img2ImgPipeline`` of the family's class does before its loop, for one image.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from kubediffusion.worker.engine import BatchKey, ImageRequest, InputImage
from kubediffusion.worker.families.base import Conditioning, ModelFamily

_MOMENTS = "moments"


class ImageToImageFamily(ModelFamily):
    """A family for whose pipeline diffusers has another that begins from an image: see :class:`ModelFamily`."""

    def takes_images(self) -> bool:
        """Return whether the model's VAE encodes images as the pipeline for them expects."""
        return isinstance(self.pipeline.vae, diffusers.AutoencoderKL)

    def begin_step(self, steps: int, strength: float) -> int:
        """Return the first step that is made of an input image, from 0; the last one is made in any case."""
        return min(int(max(steps - steps * strength, 0)), steps - 1)

    def encode_image(self, image: InputImage, key: BatchKey, vae: Any) -> Conditioning:
        """Encode an input image as mean and deviation of its latents.

        Args:
            image: The image.
            key: What the image that is made shares with its batch: its size.
            vae: The pipeline's VAE, in the numbers that it computes in.
        """
        pixels = self.pipeline.image_processor.preprocess(as_pillow(image), height=key.height, width=key.width)
        encoded = vae.encode(pixels.to(device=self.device, dtype=vae.dtype))
        return {_MOMENTS: encoded.latent_dist.parameters}

    def start_from_image(self, request: ImageRequest, encoded: Conditioning) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the latents of an image's input, and its noise, in the order in which the pipeline for them draws them.

        The engine mixes them as the noise scheduler says.

        Args:
            request: The image.
            encoded: What :meth:`encode_image` gave.

        Returns:
            ``[1, ...]`` each, in the denoiser's scale; the noise on the CPU.
        """
        generator = torch.Generator("cpu").manual_seed(request.seed)
        latents = DiagonalGaussianDistribution(encoded[_MOMENTS]).sample(generator)
        noise = torch.randn(latents.shape, generator=generator, dtype=self.denoiser_dtype)
        return self.packed(self.from_vae(latents.to(self.denoiser_dtype))), self.packed(noise)

    def from_vae(self, latents: torch.Tensor) -> torch.Tensor:
        """Scale what the VAE gave to the denoiser's: ``[1, channels, height, width]``."""
        config = self.pipeline.vae.config
        shift = getattr(config, "shift_factor", None)
        shifted: torch.Tensor = latents if shift is None else latents - shift
        scaled: torch.Tensor = shifted * config.scaling_factor
        return scaled

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        """Arrange latents as the denoiser takes them; by default as they are."""
        return latents


def as_pillow(image: InputImage) -> Image.Image:
    """Return an input image, or a mask, as diffusers' pipelines take it."""
    grey = len(image.pixels) == image.width * image.height
    pixels = np.frombuffer(image.pixels, np.uint8)
    return Image.fromarray(pixels.reshape(image.height, image.width, *(() if grey else (3,))))
