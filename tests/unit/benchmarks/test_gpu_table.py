"""The table of what was measured on a GPU: parts that are missing or broke leave no row."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[3] / "benchmarks" / "gpu"


def table(found: dict[str, Any]) -> str:
    # By its file: the folder of scripts is no package.
    spec = importlib.util.spec_from_file_location("gpu_tables", FOLDER / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for what annotations name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.table({"device": "NVIDIA H100", "versions": {"torch": "2"}, **found})


def test_ratios_are_told_beside_what_they_are_of() -> None:
    text = table(
        {
            "raw 16": {"engine": 9.1, "raw": 9.3},
            "raw 1": {"engine": 5.0, "raw": None},
            "end_to_end": {"images/s": 9.0},
            "plain": {"images/s": 1.2},
            "alone": {"seconds to PNG": 0.19, "seconds to storage": 0.2},
            "poisson": {
                "slots": {"p50": 0.9, "p95": 1.1},
                "static": {"p50": 1.5, "p95": 2.2},
                "ratio": {"p50": 0.6, "p95": 0.5},
            },
        }
    )
    assert "| engine against the raw loop, images/s, batch 16 | 9.10 against 9.30: 0.978 |" in text
    assert "batch 1 |" not in text
    assert "| the worker against it | 7.5 times |" in text
    assert "p50 0.90 s against 1.50 s: 0.60, p95 1.10 s against 2.20 s: 0.50" in text
    assert "NVIDIA H100, nothing compiled, torch 2" in text


def test_what_is_to_be_reached_stands_beside_what_was_measured() -> None:
    text = table(
        {
            "compiled": True,
            "raw 8": {"engine": 9.0, "raw": 9.0},
            "end_to_end": {"images/s": 8.8},
            "cold start": {"libraries": 7.0, "first image": 11.5},
            "warm": {"peak reserved GB": 12.5},
        }
    )
    assert "| engine against the raw loop, images/s, batch 8 | ≥ 0.97 | 9.00 against 9.00: 1.000 | yes |" in text
    assert "| ≥ 9.0 | 8.80 | **no** |" in text
    assert "| start, nothing compiled yet: libraries, s after the process began |  | 7.0 |  |" in text
    assert "first image, s after the process began | ≤ 12 | 11.5 | yes |" in text
    assert "| ≤ 12 | 12.5 | **no** |" in text


def test_what_broke_or_was_not_measured_has_no_row() -> None:
    text = table({"mixed": {"broken": "Traceback"}, "cold start": {"libraries": 7.0, "first image": 11.5}})
    assert text.count("\n| ") == 3
    assert "| start, nothing compiled yet: first image, s after the process began | 11.5 |" in text
