"""The command that scores speed for quality: which scenes it draws, and what its table says."""

from __future__ import annotations

import torch
from models.acceleration import BEGIN, COMPARED, END, PAGE, Scores, scenes_of, table
from models.training.scenes import RELATIONS, held_out


def test_scenes_were_kept_from_training_and_hold_every_relation() -> None:
    single, pairs = scenes_of(28)
    assert (len(single), len(pairs)) == (14, 14)
    assert all(held_out(scene.items, scene.background) for scene in [*single, *pairs])
    assert {len(scene.items) for scene in single} == {1}
    assert sorted(scene.relation for scene in pairs) == sorted([*range(1, len(RELATIONS))] * 2)
    # The same at every call: variants are compared on the same pictures.
    assert [scene.items for scene in scenes_of(28)[1]] == [scene.items for scene in pairs]


def test_pictures_of_nothing_score_nothing_and_are_compared_with_the_first_ones() -> None:
    scores = Scores(*scenes_of(4))
    black = scores.of(torch.zeros(4, 3, 256, 256, dtype=torch.uint8))
    assert (black["subject"], black["both subjects"], black["levels"]) == (0, 0, 0)
    assert scores.of(torch.full((4, 3, 256, 256), 255, dtype=torch.uint8))["levels"] == 255


def test_the_table_has_a_row_for_each_and_its_place_in_the_documentation() -> None:
    scores = {
        "subject": 0.98,
        "both subjects": 0.889,
        "relation": 1.0,
        "background": 1.0,
        "levels": 0.0,
        "seconds": 2.0,
    }
    found = {
        "device": "cpu",
        "dtype": "float32",
        "versions": {"torch": "2"},
        "threads": 2,
        "batch": 4,
        "prompts": {"one subject": 2, "two subjects": 2},
        "embedded": {name: scores | {"seconds": 2.0 if name == "none" else 1.0} for name in COMPARED},
    }
    rows = [row for row in table(found).splitlines() if row.startswith("| ")]
    assert len(rows) == 2 + len(COMPARED)
    assert rows[2] == "| none | 98.0 % | 88.9 % | 100.0 % | 100.0 % | 0.0 | 2.000 |"
    assert rows[3].endswith("| 1.000 |")
    timed = found | {"timed": dict.fromkeys(COMPARED, 0.5) | {"none": 1.5}}
    assert table(timed).splitlines()[3].endswith("| 1.000 | 0.500 |")
    page = PAGE.read_text(encoding="utf-8")
    assert page.index(BEGIN) < page.index(END)
