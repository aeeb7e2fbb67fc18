"""Two ranks share an image's tokens: the pixels of one process, the same bytes each time, an end when one is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubediffusion.resources.failures import JobFailure
from kubediffusion.worker.engine import BadModelError, EngineLostError
from kubediffusion.worker.engine.adapters import AdapterRefusedError
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.parallel import mirror
from unit.worker.continuous_engines import pictures, run
from unit.worker.shared_models import Pair, check_same, paired
from unit.worker.worker_builders import image_request, settings

# diffusers calls what this PyTorch has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*all_gather_tensor:FutureWarning")


@pytest.fixture(scope="module")
def context(folders: Callable[[str], Path]) -> Iterator[Pair]:
    """A tiny FLUX, whose tokens are split."""
    yield from paired(folders("flux"), "context")


def test_tokens_on_two_ranks_give_the_pixels_of_one(context: Pair) -> None:
    check_same(context, image_request(0), image_request(1, "a dog", steps=2))
    check_same(context, image_request(2, deterministic=True))
    assert context[1].info.name == "continuous+context2"


def test_what_cannot_be_split_fails_its_image_alone(context: Pair) -> None:
    _, together = context
    outcomes = run(together, image_request(0, width=22, height=22)).outcomes
    refusal = outcomes[0]
    assert isinstance(refusal, JobFailure)
    assert "cannot be split among 2 GPUs" in refusal.message
    check_same(context, image_request(1))


def test_what_fails_on_every_rank_fails_its_image_alone(context: Pair, monkeypatch: Any) -> None:
    _, together = context
    # Past the check that refuses it by name: the split itself fails, here and there alike.
    engine: Any = together.engine
    monkeypatch.setattr(engine.family, "check", lambda _key: None)
    outcome = run(together, image_request(0, width=22, height=22)).outcomes[0]
    assert isinstance(outcome, JobFailure)
    assert together.ranks.lost is None
    check_same(context, image_request(1))


def test_calls_that_are_many_are_made_anew(context: Pair, monkeypatch: Any) -> None:
    monkeypatch.setattr(mirror, "KEPT", 1)
    # Each size is another call.
    check_same(context, image_request(0, width=32, height=32))
    check_same(context, image_request(1))
    check_same(context, image_request(2, width=32, height=32))


def test_a_deterministic_image_has_the_same_bytes_each_time(context: Pair) -> None:
    request = image_request(0, deterministic=True)
    first, second = (pictures(context[1], request)[0] for _ in range(2))
    assert first.rgb == second.rgb


def test_adapters_are_refused(context: Pair, tmp_path: Path) -> None:
    _, together = context
    assert together.info.facts is not None
    assert together.info.facts.adapters is False
    with pytest.raises(AdapterRefusedError, match="without parallelism"):
        together.read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("family", "parallelism", "reason"),
    [
        ("stable_diffusion", {"mode": "context", "size": 2}, "set mode to cfg and size to 2"),
        ("flux", {"mode": "cfg", "size": 2}, "set mode to context"),
        ("flux", {"mode": "context", "size": 4}, "2 attention heads cannot be split among 4 GPUs"),
    ],
)
def test_a_model_that_cannot_be_shared_so_is_not_loaded(
    family: str, parallelism: dict[str, Any], reason: str, folders: Callable[[str], Path]
) -> None:
    with pytest.raises(BadModelError, match=reason) as refused:
        load_engine(settings(folders(family), workers={"parallelism": parallelism}))
    assert str(refused.value).startswith("spec.workers.parallelism.")


def test_one_gpu_shares_nothing(folders: Callable[[str], Path]) -> None:
    made = load_engine(settings(folders("stable_diffusion"), workers={"parallelism": {"mode": "context", "size": 1}}))
    assert isinstance(made, ContinuousEngine)


# The last test of the module: it ends a rank.
def test_a_rank_that_is_killed_while_it_is_needed_ends_the_engine(context: Pair) -> None:
    _, together = context
    os.kill(together.ranks.pids[0], signal.SIGKILL)
    with pytest.raises(EngineLostError, match=r"rank-1 ended \(signal 9\)"):
        run(together, image_request(0))
