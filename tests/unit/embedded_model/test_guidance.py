"""The guidance stage: what it is shown, what it asks for, and what ships of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models.training import settings
from models.training.dataset import Pairs, draw_pairs
from models.training.guidance import Lesson, blend
from models.training.subjects import subjects

from unit.embedded_model.plain_sprites import SPRITES

ROOT = Path(__file__).parents[3]
SUBJECTS = range(len(subjects()))


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    config = settings.read(ROOT / "models/training/config.toml", tmp_path)
    return Lesson(config, Words(), Linear(), torch.zeros(77, dtype=torch.int64))


class Words:
    """A text encoder whose words are the numbers of their tokens."""

    def __call__(self, tokens: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=tokens.float().unsqueeze(-1))


class Linear(torch.nn.Module):
    """A UNet that multiplies what it sees by the mean of the words, and that by a share of its own."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(share))
        self.asked: list[tuple[torch.Tensor, bool]] = []

    def forward(self, x: torch.Tensor, _t: torch.Tensor, words: torch.Tensor) -> SimpleNamespace:
        self.asked.append((words, torch.is_grad_enabled()))
        return SimpleNamespace(sample=self.share * x * words.mean((1, 2)).view(-1, 1, 1, 1))


def tokens(rows: int, value: int) -> torch.Tensor:
    return torch.full((rows, 77), value, dtype=torch.int16)


def test_a_captioned_prediction_is_to_keep_a_share_of_its_distance_from_the_empty_one(lesson: Lesson) -> None:
    latents = torch.randn(8, 4, 2, 2).half()
    factor = lesson.shape.factor
    # The empty caption's prediction is zero here, so that a share of the distance is a share of the prediction.
    assert lesson.scale(Linear(factor), latents, tokens(8, 3)) < 1e-9
    assert lesson.scale(Linear(1.0), latents, tokens(8, 3)) > 0.1


def test_only_the_negative_prompts_prediction_learns_to_take_away(lesson: Lesson) -> None:
    pairs = Pairs(
        both=torch.randn(4, 4, 2, 2).half(),
        rest=torch.randn(4, 4, 2, 2).half(),
        ids=(tokens(4, 5), tokens(4, 2), tokens(4, 4), tokens(4, 2)),
    )
    student = Linear()
    lesson.negatives(student, pairs, torch.arange(4)).backward()
    learning = {words[0, 0, 0].item() for words, learns in student.asked if learns}
    assert learning == {2.0}
    assert student.share.grad is not None
    assert student.share.grad.abs() > 0


def test_what_ships_lies_between_the_weights_before_and_after() -> None:
    before, after = Linear(1.0), Linear(3.0)
    blend(after, before, 0.25)
    assert after.share.item() == pytest.approx(1.5)
    assert before.share.item() == 1.0


def sprites(layers: Any) -> set[int]:
    return {int(sprite) for sprite in layers[:, 0] if sprite in SUBJECTS}


def test_what_a_negative_prompt_names_is_in_the_one_scene_and_not_in_the_other() -> None:
    drawn = draw_pairs(SPRITES, 1, 60)
    taken_away = 0
    for both, rest, (prompt, negative, wish, refused) in zip(drawn.both[0], drawn.rest[0], drawn.texts, strict=True):
        if refused:
            (gone,) = sprites(both) - sprites(rest)
            assert any(word in negative for pair in subjects()[gone].names for word in pair)
            assert refused == negative
            taken_away += 1
        else:
            assert sprites(both) == sprites(rest)
            assert wish == prompt
        assert len(sprites(both)) == 2
    assert 0 < taken_away < 60
