"""Two ranks share the rows of guidance: the pixels of one process, the same bytes, an end when one is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubediffusion.worker.engine import EngineLostError
from unit.worker.continuous_engines import pictures
from unit.worker.shared_models import Pair, check_same, paired
from unit.worker.worker_builders import image_request

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def guided(folders: Callable[[str], Path]) -> Iterator[Pair]:
    """A tiny Stable Diffusion XL, whose two rows are computed apart."""
    yield from paired(folders("stable_diffusion_xl"), "cfg")


def test_rows_on_two_ranks_give_the_pixels_of_one(guided: Pair) -> None:
    check_same(guided, image_request(0), image_request(1, "a dog", "a cat", guidance=3.0))
    # One row: nothing to share.
    check_same(guided, image_request(2, guidance=1.0))
    # By the pipeline's own call, which rank 0 makes alone.
    check_same(guided, image_request(3, scheduler="DPMSolverSinglestepScheduler"))


def test_a_deterministic_image_has_the_same_bytes_each_time(guided: Pair) -> None:
    request = image_request(0, deterministic=True)
    first, second = (pictures(guided[1], request)[0] for _ in range(2))
    assert first.rgb == second.rgb


# The last test of the module: it ends a rank.
def test_a_rank_that_is_killed_while_nobody_needs_it_ends_the_engine(guided: Pair) -> None:
    _, together = guided
    woken = threading.Event()
    assert together.prepare_while_idle(woken.set) is False
    os.kill(together.ranks.pids[0], signal.SIGKILL)
    assert woken.wait(60)
    with pytest.raises(EngineLostError, match=r"rank-1 ended \(signal 9\)"):
        together.prepare_while_idle(woken.set)
