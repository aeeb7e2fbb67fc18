"""How long a finished job stays: its own word, else its model's, else the installation's."""

from __future__ import annotations

import pytest

from kubediffusion.resources.testing import job, model
from kubediffusion.resources.time_to_live import time_to_live


@pytest.mark.parametrize(
    ("own", "of_model", "default", "expected"),
    [
        (None, None, 60, 60),
        (None, 30, 60, 30),
        (10, 30, 60, 10),
        (10, None, 0, 10),
        # 0 of a job or a model is none at all, 0 of the installation is for ever.
        (0, 30, 60, 0),
        (None, 0, 60, 0),
        (None, None, 0, None),
    ],
)
def test_the_nearest_word_holds(own: int | None, of_model: int | None, default: int, expected: int | None) -> None:
    known = model()
    known = known.model_copy(update={"spec": known.spec.model_copy(update={"ttl_seconds_after_finished": of_model})})
    assert time_to_live(job(ttl_seconds_after_finished=own).spec, known, default) == expected


def test_a_job_whose_model_does_not_exist_has_the_installation_s() -> None:
    assert time_to_live(job().spec, None, 60) == 60
