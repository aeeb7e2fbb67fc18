"""What a worker reports of its adapters, and what an adapter's status says of it."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest

from kubediffusion.resources.adapters import (
    MAX_PARSED_TEXT,
    MAX_REPORT_TEXT,
    MAX_REPORTS,
    AdapterReport,
    reports_from_json,
    reports_to_json,
)
from kubediffusion.resources.conditions import (
    REFUSED_ADAPTER,
    AdapterConditionType,
    AdapterReason,
    Condition,
    ConditionStatus,
)
from kubediffusion.resources.lora_adapter import LoRAAdapterStatus
from kubediffusion.resources.testing import NOW, adapter
from kubediffusion.resources.texts import MAX_NOTE

DIGEST = "ab" * 32
HELD = AdapterReport(uid="u", generation=2, digest=DIGEST, rank=8)
REFUSED = AdapterReport(reason="RankTooLarge", message="rank 512; workers take 64 at most")


def test_what_a_worker_reports_comes_back_as_it_was() -> None:
    reports = {"crayon": HELD, "ink": REFUSED}
    assert reports_from_json(reports_to_json(reports)) == reports
    assert [report.held for report in reports.values()] == [True, False]


def test_of_too_many_reports_the_first_are_told() -> None:
    reports = {f"a{n}": HELD for n in range(MAX_REPORTS + 1)}
    assert [*reports_from_json(reports_to_json(reports))] == [*reports][:MAX_REPORTS]


def test_reports_that_are_kept_parsed_are_bounded_by_their_text() -> None:
    def text(turn: int) -> str:
        return reports_to_json({f"a{n}": HELD.model_copy(update={"generation": turn}) for n in range(MAX_REPORTS)})

    first = reports_from_json(text(0))
    assert reports_from_json(text(0)) is first
    known = weakref.ref(first["a0"])
    del first
    for turn in range(1, MAX_PARSED_TEXT // len(text(0)) + 2):
        reports_from_json(text(turn))
    gc.collect()
    assert known() is None


def test_of_reports_that_are_too_long_together_the_first_are_told() -> None:
    refused = AdapterReport(uid="u" * 36, generation=2**31, reason="R" * 63, message="狐" * 2000)
    names = [f"{n:063}" for n in range(MAX_REPORTS)]
    text = reports_to_json(dict.fromkeys(names, refused))
    told = [*reports_from_json(text)]
    assert len(text) <= MAX_REPORT_TEXT
    assert told == names[: len(told)]
    assert 20 < len(told) < MAX_REPORTS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "[" * 100_000,
        f'{{"Crayon": {{"digest": "{DIGEST}", "rank": 8}}}}',
        '{"crayon": {}}',
        f'{{"crayon": {{"digest": "{DIGEST}"}}}}',
        '{"crayon": {"rank": 8}}',
        '{"crayon": {"digest": "../x", "rank": 8}}',
        f'{{"crayon": {{"digest": "{DIGEST}", "rank": 1e9}}}}',
        f'{{"crayon": {{"digest": "{DIGEST}", "rank": 8, "reason": "Loaded"}}}}',
        '{"crayon": {"reason": "a reason\\n"}}',
        f'{{"crayon": {{"reason": "{"R" * 64}"}}}}',
        json.dumps({f"a{n}": {"reason": "R"} for n in range(MAX_REPORTS + 1)}),
        " " * MAX_REPORT_TEXT + "{}",
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_report_says_nothing(text: str) -> None:
    assert reports_from_json(text) == {}


def test_words_of_a_worker_are_cut() -> None:
    (report,) = reports_from_json(json.dumps({"crayon": {"reason": "UnknownKeys", "message": "x" * 5000}})).values()
    assert len(report.message) == MAX_NOTE


@pytest.mark.parametrize(
    ("told", "speaks"),
    [({}, True), ({"uid": "u", "generation": 1}, True), ({"uid": "v"}, False), ({"generation": 2}, False)],
)
def test_a_report_speaks_of_one_adapter_and_one_state_of_its_spec(told: dict[str, Any], speaks: bool) -> None:
    assert AdapterReport(reason="UnknownKeys", **told).speaks_of("u", 1) is speaks


def status(reason: str, ready: ConditionStatus = ConditionStatus.FALSE, generation: int = 1) -> LoRAAdapterStatus:
    condition = Condition(type=AdapterConditionType.READY, status=ready, reason=reason, last_transition_time=NOW)
    return LoRAAdapterStatus(conditions=(condition,), observed_generation=generation)


@pytest.mark.parametrize("reason", AdapterReason)
def test_a_refusal_stays_and_a_failure_does_not(reason: AdapterReason) -> None:
    refusal = adapter(status=status(reason)).refusal
    assert (refusal is not None) is (reason in REFUSED_ADAPTER)
    assert adapter(status=status(reason, generation=0)).refusal is None
    assert adapter(status=status(reason, ConditionStatus.TRUE)).refusal is None
