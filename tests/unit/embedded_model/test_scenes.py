# ruff: noqa: S311 - scenes, no secrets
"""The scenes that the embedded model learned from: what they say, where they put things, and what is held out."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.training.backgrounds import BACKGROUNDS, Background
from models.training.captions import SEED_PROMPT, caption, plain_prompt
from models.training.compose import Composer, pack
from models.training.data import family, with_legs
from models.training.dataset import label
from models.training.sampler import Sampler
from models.training.scenes import RELATIONS, Scene, held_out
from models.training.subjects import by_name, plural_of, subjects

from unit.embedded_model.plain_sprites import SPRITES

seeds = st.integers(0, 2**32)
few = settings(max_examples=25)


def test_there_is_enough_to_draw() -> None:
    assert len(subjects()) >= 150
    assert len(BACKGROUNDS) >= 14
    assert {"riding", "next to", "above", "under", "holding", "in front of", "behind"} <= set(RELATIONS)
    names = [word for s in subjects() for word in {w for pair in s.names for w in pair}]
    assert len(names) == len(set(names)), "a name means one subject"


@few
@given(seeds)
def test_training_never_sees_what_is_held_out(seed: int) -> None:
    scene = Sampler(SPRITES, random.Random(seed)).training()
    assert not held_out(scene.items, scene.background)
    assert held_out(*(lambda s: (s.items, s.background))(Sampler(SPRITES, random.Random(seed)).unseen()))


@few
@given(seeds)
def test_a_caption_names_the_first_subject_or_place(seed: int) -> None:
    rng = random.Random(seed)
    scene = Sampler(SPRITES, rng).training()
    text = caption(scene, rng).lower()
    words = [w for s in scene.items for pair in s.names for w in pair]
    place = BACKGROUNDS[scene.background]
    assert any(w in text for w in words) or any(p in text for p in (*place.nouns, *place.phrases))
    if len(scene.items) == 2:
        for subject in scene.items:
            assert any(w in text for pair in subject.names for w in pair)


@few
@given(seeds)
def test_everything_stands_on_the_canvas(seed: int) -> None:
    scene = Sampler(SPRITES, random.Random(seed)).training()
    for layer in scene.layers[-len(scene.items) :] if scene.items else []:
        left, top, right, bottom = layer.box
        assert -0.1 < left < right < 1.1
        assert -0.05 < top < bottom < 1.1


def test_a_rider_is_above_its_mount_and_touches_it() -> None:
    table = by_name()
    sampler = Sampler(SPRITES, random.Random(3))
    for _ in range(20):
        scene = Scene(0, 0.7, [table["astronaut"], table["horse"]], RELATIONS.index("riding"))
        sampler.place(scene)
        mount, rider = scene.layers[-2:]
        assert rider.y < mount.y
        assert rider.box[3] > mount.box[1]


@pytest.fixture(scope="module")
def composer() -> Composer:
    """It holds all pictures as numbers, which takes a while to make."""
    return Composer(SPRITES, "cpu", 32)


def test_the_same_seed_composes_the_same_pixels_and_another_does_not(composer: Composer) -> None:
    def compose(seed: int) -> torch.Tensor:
        sampler = Sampler(SPRITES, random.Random(seed))
        layers, places = pack([sampler.training() for _ in range(6)])
        return composer(torch.from_numpy(layers), torch.from_numpy(places), torch.Generator().manual_seed(seed))

    first = compose(1)
    assert first.dtype == torch.uint8
    assert first.shape == (6, 3, 32, 32)
    assert torch.equal(first, compose(1))
    assert not torch.equal(first, compose(2))


@pytest.mark.parametrize("background", BACKGROUNDS, ids=lambda b: b.name)
def test_every_background_paints(composer: Composer, background: Background) -> None:
    index = BACKGROUNDS.index(background)
    layers, places = pack([Scene(index, background.horizon[0], []) for _ in range(2)])
    image = composer(torch.from_numpy(layers), torch.from_numpy(places), torch.Generator().manual_seed(1))
    assert image.float().std() > 0.5
    assert not torch.equal(image[0], image[1])


def test_words() -> None:
    assert plural_of("fox") == "foxes"
    assert plural_of("lady") == "ladies"
    assert plural_of("monkey") == "monkeys"
    assert by_name()["cosmonauts"].name == "astronaut"
    assert SEED_PROMPT == "A photo of an astronaut riding a horse on the moon"
    cat = Scene(0, 0.7, [by_name()["cat"]], count=2)
    assert plain_prompt(cat) == "a photo of two cats on the moon"
    assert family("1f469-1f3fd-200d-1f680") == ("1f9d1-200d-1f680", "f")
    assert family("1f46e-1f3fb-200d-2642-fe0f") == ("1f46e", "m")


def test_the_judge_is_not_asked_what_a_picture_cannot_tell() -> None:
    table = by_name()
    pair = [table["cat"], table["dog"]]
    scenes = [Scene(0, 0.7, pair, RELATIONS.index(name)) for name in ("above", "under", "behind", "in front of")]
    _, labels = label(scenes)
    assert labels[0, 2] == labels[1, 2]
    assert labels[2, 2] == labels[3, 2]


def test_a_seated_rider_keeps_its_face_and_gains_a_leg() -> None:
    bust = SPRITES.pixels[0].copy()
    seated = with_legs(bust)
    assert seated.shape == bust.shape
    assert seated[200:250, 60:130, 3].max() == 255
