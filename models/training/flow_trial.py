"""Finds out, in a process of its own, whether the compiled blocks of the flow-matching model are right, and faster.

Compilers break in ways that end the process, and take minutes that nobody expected. So training asks a file that this
module writes; where there is none, it trains uncompiled. What was compiled here is in the compiler's cache afterwards.
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone reads

from .flow import FlowModel, compiled_blocks, text_length

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from .flow_data import Tokenizer
    from .settings import Settings

log = logging.getLogger(__name__)
ALIKE = 0.99  # cosine of the gradients, compiled and not
WARM, TIMED = 3, 8


class Trial:
    """Trains on noise, compiled and not.

    Args:
        settings: The configuration.
        tokenizer: For the sizes of the vocabularies.
        device: Where.
        batch: Samples of a step.
        initial: A pipeline folder whose weights to begin with, since new weights have few gradients.
    """

    def __init__(
        self, settings: Settings, tokenizer: Tokenizer, device: str, batch: int, initial: Path | None = None
    ) -> None:
        self.settings, self.device, self.batch = settings, torch.device(device), batch
        torch.manual_seed(0)
        self.model = FlowModel(settings, tokenizer).to(device)
        if initial is not None:
            self.model.begin_with(initial)
        vocabulary = len(tokenizer.clip)
        self.ids = torch.randint(vocabulary, (batch, settings.flow.length), device=self.device)

    def loss(self, size: tuple[int, int], seed: int = 0) -> Tensor:
        """Return the loss of one step of noise."""
        generator = torch.Generator(self.device).manual_seed(seed)
        tokens, channels = size[0] * size[1], self.model.transformer.config.in_channels
        x, target = torch.randn(2, self.batch, tokens, channels, device=self.device, generator=generator).unbind()
        t = torch.rand(self.batch, device=self.device, generator=generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            words = self.model.words(self.ids, text_length(self.settings, tokens))
            return F.mse_loss(self.model(x, t, torch.ones_like(t), words, size), target)

    def gradient(self, size: tuple[int, int]) -> Tensor:
        """Return the gradient of all weights, flat."""
        self.model.zero_grad(set_to_none=True)
        self.loss(size).backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])

    def milliseconds(self, size: tuple[int, int]) -> float:
        """Time a step without the optimizer."""
        for k in range(WARM + TIMED):
            if k == WARM:
                self._wait()
                began = time.monotonic()
            self.gradient(size)
        self._wait()
        return 1000 * (time.monotonic() - began) / TIMED

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self) -> dict[str, Any]:
        """Compare; say how alike the gradients are, and what a step takes."""
        shapes = [(height // 16, width // 16) for width, height in self.settings.flow.sizes[:2]]
        plain = [self.gradient(size) for size in shapes]
        slow = self.milliseconds(shapes[0])
        began = time.monotonic()
        self.model.compiled = compiled_blocks(self.settings, self.batch)
        fast = [self.gradient(size) for size in shapes]
        alike = min(float(F.cosine_similarity(a, b, dim=0)) for a, b in zip(plain, fast, strict=True))
        compiling = time.monotonic() - began
        quick = self.milliseconds(shapes[0])
        return {
            "compiled": alike > ALIKE and quick < slow,
            "alike": round(alike, 5),
            "ms": round(quick, 1),
            "ms_uncompiled": round(slow, 1),
            "seconds_to_compile": round(compiling, 1),
        }

    def ask(self) -> None:
        """Compile what only predicts, as a teacher does."""
        with torch.no_grad():
            for width, height in self.settings.flow.sizes[:2]:
                self.loss((height // 16, width // 16))


def result_path(settings: Settings, rank: int) -> Path:
    """Return where a GPU's result is."""
    return settings.work / f"compiled-{rank}.json"


def run(trial: Trial, rank: int) -> None:
    """Take the measurements and write them."""
    result = trial.run()
    log.info("trial on GPU %d: %s", rank, result)
    path = result_path(trial.settings, rank)
    path.with_suffix(".new").write_text(json.dumps(result) + "\n", encoding="utf-8")
    path.with_suffix(".new").replace(path)
    trial.ask()


def passed(settings: Settings, world: int) -> bool:
    """Say whether every GPU's trial found the compiled blocks right, and faster."""
    paths = [result_path(settings, rank) for rank in range(world)]
    return all(path.exists() and json.loads(path.read_text(encoding="utf-8"))["compiled"] for path in paths)
