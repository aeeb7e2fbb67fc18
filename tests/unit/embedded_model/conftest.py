"""The judges, which the embedded models are shown to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

JUDGE = Path(__file__).parents[3] / "models" / "judge" / "judge.py"


@pytest.fixture(scope="session")
def judges() -> ModuleType:
    spec = importlib.util.spec_from_file_location("embedded_model_judge", JUDGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def judge(judges: Any) -> Any:
    return judges.Judge()


@pytest.fixture(scope="session")
def style_judge(judges: Any) -> Any:
    return judges.StyleJudge()
