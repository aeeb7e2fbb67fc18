"""Muon for matrices and convolutions, AdamW for everything else.

``torch.optim.Muon`` refuses convolutions (docs/adr/0017).
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

# Quintic of Jordan et al. (2024): five rounds bring singular values near one, not exactly to it.
_A, _B, _C, _ROUNDS = 3.4445, -4.7750, 2.0315, 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices, roughly, by Newton and Schulz's iteration.

    Args:
        matrices: [n, rows, columns].

    Returns:
        bfloat16 [n, rows, columns], singular values between about 0.7 and 1.2.
    """
    x: Tensor = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al., 2024).

    Steps are as long as AdamW's (Liu et al., 2025), so that its learning rates carry over.

    Args:
        parameters: Matrices, or convolutions, which count as matrices of one row an output channel.
        lr: Learning rate.
        momentum: Decay of the gradient's average (Nesterov's form).
        weight_decay: Share of the weights, times the rate, that a step takes away.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update all parameters; those of one shape together, so that a step is few kernels."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape[0], math.prod(p.shape[1:])].append(p)
            for (rows, columns), parameters in alike.items():
                grads = [p.grad for p in parameters if p.grad is not None]
                averages = [self.state[p].setdefault("average", torch.zeros_like(p)) for p in parameters]
                torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
                ahead = [g.lerp(a, group["momentum"]) for g, a in zip(grads, averages, strict=True)]
                updates = orthogonalize(torch.stack([u.reshape(rows, columns) for u in ahead])).float()
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                # A root mean square of 0.2 an element is what AdamW's steps have.
                length = 0.2 * math.sqrt(max(rows, columns))
                shaped = [u.view(p.shape) for u, p in zip(updates.unbind(), parameters, strict=True)]
                torch._foreach_add_(parameters, shaped, alpha=-group["lr"] * length)


EDGES = ("embedding", "conv_in", "conv_out")


def optimizers(
    modules: Iterable[nn.Module], rate: float, edges: tuple[str, ...] = EDGES
) -> tuple[Muon, torch.optim.AdamW]:
    """Return the optimizers of several modules: what enters or leaves a network, norms and biases are AdamW's.

    Args:
        modules: What to train.
        rate: Learning rate of both.
        edges: Parts of the names of parameters that enter or leave a network.
    """
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    for module in modules:
        for name, p in module.named_parameters():
            if not p.requires_grad:
                continue
            edge = any(part in name for part in edges)
            (outer if edge or p.ndim < 2 else inner).append(p)
    fast = all(p.is_cuda for p in outer)
    return Muon(inner, rate), torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=fast)
