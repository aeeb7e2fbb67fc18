"""A transformer's attention by cuDNN: the numbers of PyTorch's own, which computes what cuDNN does not take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from kubediffusion.worker.execution import cudnn
from kubediffusion.worker.execution.compile.functions import compiled_for
from kubediffusion.worker.execution.transformer_attention import use_cudnn
from unit.worker.families.family_rows import saved

pytestmark = pytest.mark.usefixtures("without_gradients", "own_backends")


@pytest.fixture
def own_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What diffusers keeps for the whole process is as it was, after a test."""
    monkeypatch.setattr(_AttentionBackendRegistry, "_backends", dict(_AttentionBackendRegistry._backends))  # noqa: SLF001
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)  # noqa: SLF001


@pytest.fixture
def calls() -> Iterator[list[torch.Size]]:
    """The queries that cuDNN's kernel was given; PyTorch's own computes in its place."""
    seen: list[torch.Size] = []

    def kernel(query: Any, key: Any, value: Any, *_: Any, **options: Any) -> Any:
        seen.append(query.shape)
        nothing = torch.zeros(1)
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=options.get("scale"))
        return attended, nothing, nothing, nothing, 1, 1, nothing, nothing, nothing

    with torch.library._scoped_library("aten", "IMPL") as library:  # noqa: SLF001
        library.impl("_scaled_dot_product_cudnn_attention", kernel, "CPU")
        yield seen


def step(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    output: torch.Tensor = model(**given, return_dict=False)[0]
    return output


def test_attention_by_cudnn_computes_what_pytorchs_own_computes(
    calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved("flux-dev").transformer
    torch.manual_seed(0)
    given = {
        "hidden_states": torch.randn(2, 16, model.config.in_channels),
        "encoder_hidden_states": torch.randn(2, 8, model.config.joint_attention_dim),
        "pooled_projections": torch.randn(2, model.config.pooled_projection_dim),
        "timestep": torch.tensor([0.5, 0.2]),
        "img_ids": torch.randn(16, 3),
        "txt_ids": torch.zeros(8, 3),
        "guidance": torch.tensor([3.5, 2.0]),
    }
    expected = step(model, given)
    use_cudnn(model)
    # Not on a CUDA device, and not in half precision.
    assert torch.equal(step(model, given), expected)
    assert not calls
    monkeypatch.setattr(cudnn, "takes", lambda _states, _head, mask: mask is None)
    torch.testing.assert_close(step(model, given), expected, atol=1e-5, rtol=1e-5)
    assert calls
    torch.testing.assert_close(
        compiled_for(step, (model, given), "eager")(model, given), expected, atol=1e-5, rtol=1e-5
    )


def test_a_pipeline_without_a_transformer_is_left() -> None:
    before = _AttentionBackendRegistry._active_backend  # noqa: SLF001
    use_cudnn(None)
    assert _AttentionBackendRegistry._active_backend is before  # noqa: SLF001
