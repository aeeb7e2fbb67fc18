"""The table of models is what the census found, and stands for the diffusers that is installed."""

from __future__ import annotations

import pytest

from census import page, registry
from census.__main__ import PAGE, read_record
from census.probe import probe
from unit.worker.families.family_rows import ROWS

# Every module of diffusers is imported, some of which use what torch and transformers will take away.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "DeprecationWarning", "UserWarning")
]

REPRESENTATIVE = ["stable-diffusion", "flux-schnell", "qwen-image-2.1", "ernie-image-with-enhancer", "longcat-image"]
"""One of each kind: stepped with two rows and with one, sensitive to its mates, drawing from the global generator, and
without a callback. `make models` runs all."""


def test_the_page_is_what_was_found() -> None:
    # Another version of diffusers has found nothing yet, and other classes: the difference names them.
    assert PAGE.read_text() == page.text(read_record())


def test_the_page_names_the_step_engine_for_each_family() -> None:
    record = read_record()
    stepped = {row.name for row in ROWS if row.build is None}
    assert {name: record[name].engine for name in stepped} == dict.fromkeys(stepped, "continuous")


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_a_model_does_what_the_page_says(name: str) -> None:
    found, told = probe(name), read_record()[name]
    assert found.engine == told.engine
    assert max(found.own, found.beside) <= 1
    assert (found.repeats, found.progress, found.cancels) == (True, True, True)
    assert found.warnings == told.warnings


def test_no_row_is_missing_or_worse_than_it_must_be() -> None:
    assert read_record().keys() == registry.MODELS.keys()
    for name, found in read_record().items():
        if registry.MODELS[name].refused:
            assert found.refused, name
        else:
            assert (found.refused, found.failed, found.beside <= 1, found.repeats) == ("", "", True, True), name
