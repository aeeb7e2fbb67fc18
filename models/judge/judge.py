"""The judge: a small network that says what an image shows. It was trained on composed scenes, never on generated ones.

It needs torch, numpy, Pillow and safetensors, and nothing else of this repository.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads
from safetensors.torch import load_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

HERE = Path(__file__).parent
SIDE = 128  # pixels; larger images are averaged down to this


class Block(nn.Module):
    """A residual block of two 3-by-3 convolutions with batch normalisation (He et al., 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.skip = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 or before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, before, h, w] to [n, after, h / stride, w / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class JudgeNet(nn.Module):
    """Four answers about one image.

    Args:
        subjects: How many subjects it knows.
        backgrounds: How many backgrounds it knows.
        relations: How many relations it knows, "none" included.
        widths: Channels of the four stages.
    """

    def __init__(
        self, subjects: int, backgrounds: int, relations: int, widths: Sequence[int] = (32, 64, 112, 168)
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages: list[nn.Module] = []
        before = widths[0]
        for k, width in enumerate(widths):
            stages += [Block(before, width, 1 if k == 0 else 2), Block(width, width, 1)]
            before = width
        self.stages = nn.Sequential(*stages)
        self.heads = nn.ModuleDict(
            {
                "subjects": nn.Linear(2 * before, subjects),
                "background": nn.Linear(2 * before, backgrounds),
                "count": nn.Linear(2 * before, 3),
                "relation": nn.Linear(2 * before, relations),
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Answer for images.

        Args:
            x: float [n, 3, 128, 128] in -1..1.

        Returns:
            Logits: subjects [n, subjects] (independent), background, count (1, 2, 3) and relation (one of each).
        """
        y = self.stages(self.stem(x))
        pooled = torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1)
        return {name: head(pooled) for name, head in self.heads.items()}


class StyleNet(nn.Module):
    """Two answers about one image: its style, and whether the guest is in it, a subject that an adapter taught.

    Args:
        styles: How many styles it knows, "none" included.
        widths: Channels of the four stages.
    """

    def __init__(self, styles: int, widths: Sequence[int] = (16, 32, 56, 84)) -> None:
        super().__init__()
        self.net = JudgeNet(1, styles, 1, widths)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Answer for images, float [n, 3, 128, 128] in -1..1: logits of the styles [n, styles] and of the guest [n]."""
        answers = self.net(x)
        return {"style": answers["background"], "guest": answers["subjects"].squeeze(1)}


def prepare(images: Tensor) -> Tensor:
    """Scale images to what the network takes.

    Args:
        images: uint8 [n, 3, h, w].

    Returns:
        float32 [n, 3, 128, 128] in -1..1.
    """
    x = images.float() / 127.5 - 1
    return x if x.shape[-1] == SIDE else F.interpolate(x, (SIDE, SIDE), mode="area")


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in an image.

    Attributes:
        subjects: Probability of each subject, by name.
        background: The most likely background.
        count: How many there are (of a single kind), 1 to 3.
        relation: The most likely relation, "none" for a single kind.
    """

    subjects: dict[str, float]
    background: str
    count: int
    relation: str

    def sees(self, name: str) -> bool:
        """Whether a subject is there: more likely than not."""
        return self.subjects[name] >= 0.5


class Judge:
    """The trained network with its words.

    Args:
        folder: Where `judge.safetensors` and `judge.json` lie.
        device: Where to run.
    """

    def __init__(self, folder: Path = HERE, device: str = "cpu") -> None:
        about: dict[str, Any] = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
        self.subjects: list[str] = about["subjects"]
        self.backgrounds: list[str] = about["backgrounds"]
        self.relations: list[str] = about["relations"]
        self.device = device
        self.net = JudgeNet(len(self.subjects), len(self.backgrounds), len(self.relations))
        weights = load_file(folder / "judge.safetensors")
        self.net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        self.net.to(device).eval()

    @torch.no_grad()
    def answers(self, images: Tensor) -> dict[str, Tensor]:
        """Return the network's logits for uint8 images [n, 3, h, w], on the CPU."""
        parts = [self.net(prepare(images[i : i + 256].to(self.device))) for i in range(0, len(images), 256)]
        return {name: torch.cat([p[name].float().cpu() for p in parts]) for name in parts[0]}

    def look(self, image: Image) -> Verdict:
        """Judge one picture."""
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        answers = self.answers(pixels)
        chances = answers["subjects"][0].sigmoid().tolist()
        return Verdict(
            dict(zip(self.subjects, chances, strict=True)),
            self.backgrounds[int(answers["background"][0].argmax())],
            int(answers["count"][0].argmax()) + 1,
            self.relations[int(answers["relation"][0].argmax())],
        )


class StyleJudge:
    """The trained network that tells the adapters of `kubediffusion-emoji-flow` apart.

    Args:
        folder: Where `styles.safetensors` and `styles.json` lie.
        device: Where to run.
    """

    def __init__(self, folder: Path = HERE, device: str = "cpu") -> None:
        self.about: dict[str, Any] = json.loads((folder / "styles.json").read_text(encoding="utf-8"))
        self.styles: list[str] = self.about["styles"]
        self.device = device
        self.net = StyleNet(len(self.styles))
        weights = load_file(folder / "styles.safetensors")
        self.net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        self.net.to(device).eval()

    @torch.no_grad()
    def answers(self, images: Tensor) -> dict[str, Tensor]:
        """Return the style's number and the guest's probability of uint8 images [n, 3, h, w], on the CPU."""
        parts = [self.net(prepare(images[i : i + 256].to(self.device))) for i in range(0, len(images), 256)]
        return {
            "style": torch.cat([p["style"].argmax(1).cpu() for p in parts]),
            "guest": torch.cat([p["guest"].float().sigmoid().cpu() for p in parts]),
        }

    def look(self, image: Image) -> tuple[str, float]:
        """Return one picture's style and how likely the guest is in it."""
        answers = self.answers(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None])
        return self.styles[int(answers["style"][0])], float(answers["guest"][0])
