"""The page of results: each seed has its row and its tables, and replaces only its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.evidence import Pace
from chaos.report import BEGIN, END, Result, row, table, write
from chaos.run import Plan
from chaos.violation import Violation

PLAN = Plan(name="chaos", orders=())


def result(beside: float, broken: int = 0) -> Result:
    violations = [Violation("each accepted job ends", f"job-{number}", "it has no end") for number in range(broken)]
    return Result(None, [Pace("a fault", (1.0, 1.0), (beside, beside))], violations)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(f"# Before\n\n{BEGIN}\nSeed 1: an older form.\n\n| 1 | 2 |\n\n{END}\nAfter.\n")
    return path


def put(page: Path, seed: int, found: Result) -> None:
    write(page, seed, row(seed, found), table(seed, PLAN, found))


def test_seeds_stand_beside_each_other_in_order(page: Path) -> None:
    for seed, beside in ((3, 1.1), (1, 1.15), (2, 0.9)):
        put(page, seed, result(beside))
    text = page.read_text()
    assert text.startswith(f"# Before\n\n{BEGIN}")
    assert text.endswith(f"{END}\nAfter.\n")
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.endswith(" times | 0 |")] == [
        "1",
        "2",
        "3",
    ]
    assert [line for line in text.splitlines() if line.startswith("### ")] == ["### Seed 1", "### Seed 2", "### Seed 3"]


def test_a_seed_that_is_run_again_replaces_its_own_results(page: Path) -> None:
    put(page, 1, result(1.1, broken=2))
    put(page, 2, result(1.0))
    put(page, 1, result(1.2))
    text = page.read_text()
    assert "1.10" not in text
    assert "job-0" not in text
    assert text.count("1.20 times") == text.count("1.00 times") == 1
    assert text.count("### Seed 1") == 1


def test_the_row_counts_the_laws_that_were_broken() -> None:
    assert row(7, result(1.3, broken=2)).endswith("| 1.30 times | 2 |")
