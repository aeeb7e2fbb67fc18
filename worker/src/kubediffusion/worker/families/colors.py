"""Colours of latents: what an image will look like, without the VAE's decoder.

The latents of a place follow its colour nearly linearly, whatever the VAE: three weighted sums of their channels are a
picture, small and blurred, at a thousandth of what the decoder costs. The weights are fitted to the VAE itself, by what
its encoder makes of an image that is known, so they hold for every VAE, also one that was trained further.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

_SIDE = 256
"""Pixels of the known image's side: some thousand latents, of which there is a weight for each of 4 to 64 channels."""

_COARSE, _FINE = 8, 32
"""Patches of the known image's side: large areas show colours, small ones that these are where they are."""

_RIDGE = 1e-3
"""Weight of small weights, relative to the latents' own variance: channels that say nothing of colour get none."""

_WITH_FRAMES = 5
"""Dimensions of latents with frames: image, channel, frame, height, width."""


class LatentColors:
    """The colours of one VAE's latents.

    Args:
        weights: Of each channel, then of 1: ``[channels + 1, 3]``, for colours from -1 to 1.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self._weights = weights

    @classmethod
    def fit(cls, vae: Any, *, frames: bool) -> LatentColors:
        """Fit colours to a VAE, by one call of its encoder.

        Args:
            vae: The VAE, on its device.
            frames: Whether its latents have frames.

        Raises:
            ValueError: Its encoder gives no numbers.
        """
        known = _known_image().to(vae.device, vae.dtype)
        latents = _encoded(vae, known, frames=frames)
        if not bool(latents.isfinite().all()):
            # float16 ends at 65504, and some models' VAE goes beyond.
            latents = _encoded(copy.deepcopy(vae).float(), known.float(), frames=frames)
        if not bool(latents.isfinite().all()):
            raise ValueError("the VAE's encoder gives no numbers")
        height, width = latents.shape[-2:]
        colors = F.adaptive_avg_pool2d(known.float(), (height, width))[0].flatten(1).T.cpu()
        places = latents.flatten(1).T.cpu()
        mean = places.mean(dim=0)
        places = places - mean
        gram = places.T @ places
        ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        slopes = torch.linalg.solve(gram + ridge, places.T @ (colors - colors.mean(dim=0)))
        weights = torch.cat([slopes, (colors.mean(dim=0) - mean @ slopes)[None]])
        return cls(weights)

    def of(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the colours of an image's latents.

        Args:
            latents: As the VAE decodes them: ``[1, channels, height, width]``, or with frames before the height.

        Returns:
            ``[height, width, 3]``, float32, 0 to 1.
        """
        first = (latents[0, :, 0] if latents.dim() == _WITH_FRAMES else latents[0]).float()
        # Not where the VAE is: it may be on the host while it has nothing to do.
        self._weights = self._weights.to(first.device)
        colors = torch.einsum("chw,cr->hwr", first, self._weights[:-1]) + self._weights[-1]
        return ((colors + 1) / 2).nan_to_num(0.5).clamp(0, 1)


def _known_image() -> torch.Tensor:
    """Make an image of many colours, large areas and small ones: ``[1, 3, side, side]``, -1 to 1."""
    generator = torch.Generator("cpu").manual_seed(0)
    layers = [torch.rand(1, 3, patches, patches, generator=generator) for patches in (_COARSE, _FINE)]
    coarse, fine = (F.interpolate(layer, (_SIDE, _SIDE), mode="bilinear", align_corners=False) for layer in layers)
    # Averages lie near grey, and images do not.
    return ((0.7 * coarse + 0.3 * fine - 0.5) * 3).clamp(-1, 1)


def _encoded(vae: Any, image: torch.Tensor, *, frames: bool) -> torch.Tensor:
    """Encode an image in the VAE's own scale: ``[channels, height, width]``, float32."""
    output = vae.encode(image[:, :, None] if frames else image)
    distribution = getattr(output, "latent_dist", None)
    latents: torch.Tensor = (output.latents if distribution is None else distribution.mode())[0].float()
    return latents[:, 0] if frames else latents
