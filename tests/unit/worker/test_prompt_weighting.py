"""Weights in prompts, and prompts in chunks: what they mean, and that nothing changes where neither is there."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.worker.engine import GuidanceKind, ImageRequest
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.families.prompt_weighting import MOST_CHUNKS, parse_weights, weighted
from kubediffusion.worker.families.text import LruCache
from kubediffusion.worker.testing import save_flux, save_latent_consistency
from unit.worker.continuous_engines import load, pictures, run
from unit.worker.families.family_rows import saved
from unit.worker.families.parity import step_engine
from unit.worker.worker_builders import image_request, levels_apart, settings

# diffusers asks NumPy 2 for arrays the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

MODELS = ["stable-diffusion", "stable-diffusion-2", "stable-diffusion-xl"]
LONG = "a very long text about a cat and a dog and a horse on a hill in the rain at night " * 2
EITHER_NEGATIVE = pytest.mark.parametrize("negative", [None, "a dog"])


@functools.cache
def engine(name: str) -> ContinuousEngine:
    return step_engine(saved(name))


@pytest.fixture(params=MODELS)
def stepped(request: pytest.FixtureRequest) -> ContinuousEngine:
    return engine(request.param)


def asked(prompt: str, negative: str | None = None, *, index: int = 0, weighting: bool = True) -> ImageRequest:
    request = image_request(index, prompt, negative, steps=2, width=64, height=64)
    return replace(request, seed=7, sampling=replace(request.sampling, prompt_weighting=weighting))


def drawn(stepped: ContinuousEngine, *asked_for: Any, **options: Any) -> bytes:
    return pictures(stepped, asked(*asked_for, **options))[0].rgb


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat:1.3), wet", [("a ", 1.0), ("cat", 1.3), (", wet", 1.0)]),
        ("(cat: .5 )", [("cat", 0.5)]),
        ("((cat)) [dog]", [("cat", 1.21), (" ", 1.0), ("dog", 1 / 1.1)]),
        ("(a [b] c:2)", [("a ", 2.0), ("b", 2 / 1.1), (" c", 2.0)]),
        (r"\(a\) \[b\] \\", [(r"(a) [b] \ ".rstrip(), 1.0)]),
        ("a (cat", [("a ", 1.0), ("cat", 1.1)]),
        ("a) b] c:1.3)", [("a) b] c:1.3)", 1.0)]),
        ("12:30, a cat: wet", [("12:30, a cat: wet", 1.0)]),
        ("(a:1.2:3)", [("a:1.2", 3.0)]),
        ("(a:1.0) b", [("a b", 1.0)]),
        ("(a:1000) (b:-1000)", [("a", 10.0), (" ", 1.0), ("b", -10.0)]),
        ("", []),
        ("()", []),
    ],
)
def test_the_syntax_is_that_of_the_web_ui(text: str, parts: list[tuple[str, float]]) -> None:
    found = parse_weights(text)
    assert [part for part, _ in found] == [part for part, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


@given(st.text(alphabet="ab ()[]:\\1.", max_size=60))
def test_every_text_has_parts_and_loses_no_word(text: str) -> None:
    parts = parse_weights(text)
    assert all(abs(weight) <= 10 for _, weight in parts)
    kept = "".join(part for part, _ in parts)
    assert [sign for sign in kept if sign in "ab"] == [sign for sign in text if sign in "ab"]


@EITHER_NEGATIVE
def test_short_prompts_without_weights_give_the_same_image_bit_by_bit(
    stepped: ContinuousEngine, negative: str | None
) -> None:
    plain = drawn(stepped, "a cat", negative, weighting=False)
    assert drawn(stepped, "a cat", negative) == plain
    assert drawn(stepped, "a (cat:1.0)", negative and f"({negative}:1)") == plain
    assert drawn(stepped, r"a \(cat\)", negative) == drawn(stepped, "a (cat)", negative, weighting=False)


@EITHER_NEGATIVE
def test_weights_and_the_end_of_a_long_prompt_have_an_effect(stepped: ContinuousEngine, negative: str | None) -> None:
    assert drawn(stepped, "a (cat:1.5)", negative) != drawn(stepped, "a cat", negative)
    assert drawn(stepped, f"{LONG} a", negative) != drawn(stepped, f"{LONG} b", negative)
    cut = [drawn(stepped, LONG + end, negative, weighting=False) for end in (" a", " b")]
    assert cut[0] == cut[1]


def test_negative_prompts_have_weights_and_chunks_too(stepped: ContinuousEngine) -> None:
    assert drawn(stepped, "a cat", "a (dog:1.5)") != drawn(stepped, "a cat", "a dog")
    assert drawn(stepped, "a cat", f"{LONG} a") != drawn(stepped, "a cat", f"{LONG} b")


def test_a_chunk_is_encoded_as_the_pipelines_own_call_encodes_a_prompt() -> None:
    for name in MODELS:
        pipeline, family = engine(name).pipeline, engine(name).family
        room = pipeline.tokenizer.model_max_length - 2
        # A letter that stands alone is a token.
        words = ["a", "b"] * room
        request = asked(" ".join(words), "x")
        key = family.key(request)
        assert key.text_length == 2 * pipeline.tokenizer.model_max_length
        with torch.inference_mode():
            encoded = family.encode(request, key)["encoder_hidden_states"]
            halves = [
                pipeline.encode_prompt(text, device=pipeline.device, num_images_per_prompt=1,
                                       do_classifier_free_guidance=False)[0]
                for text in (" ".join(words[:room]), " ".join(words[room:]), "x", "")
            ]  # fmt: skip
        assert torch.allclose(encoded[1], torch.cat(halves[:2], dim=1)[0], atol=1e-5)
        # The other side is padded with what no words give.
        assert torch.allclose(encoded[0], torch.cat(halves[2:], dim=1)[0], atol=1e-5)


def test_mates_change_nothing_and_share_steps_where_lengths_agree(stepped: ContinuousEngine) -> None:
    long = [asked(LONG, index=0), replace(asked(f"{LONG} (b:1.4)", index=1), negative_prompt="a dog")]
    short = [asked("a (cat:1.4)", index=0), asked("a cat", "a dog", index=1, weighting=False)]
    for requests in (long, short):
        assert stepped.plan(requests[0]).key == stepped.plan(requests[1]).key
        together = pictures(stepped, *requests)
        for request in requests:
            assert levels_apart(together[request.id.index], pictures(stepped, request)[request.id.index]) <= 1
    assert stepped.plan(long[0]).key != stepped.plan(short[0]).key


def test_weights_keep_the_mean() -> None:
    encoding = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0)) + 1
    scaled = weighted(encoding, (2.0, 1.0, 0.5))
    assert scaled.mean() == pytest.approx(float(encoding.mean()), rel=1e-4)
    ratio = scaled / encoding
    assert float(ratio[0, 1, 0] / ratio[0, 2, 0]) == pytest.approx(2.0, rel=1e-4)
    assert torch.equal(weighted(encoding, (1.0, 1.0)), encoding)


def test_only_what_no_chunk_has_room_for_is_cut(stepped: ContinuousEngine) -> None:
    outcome = pictures(stepped, asked(LONG))[0]
    assert not [warning for warning in outcome.warnings if "too long" in warning]
    room = MOST_CHUNKS * (stepped.pipeline.tokenizer.model_max_length - 2)
    request = asked("a " * (room + 3))
    assert stepped.family.text_length(request, GuidanceKind.NONE) == MOST_CHUNKS * (room // MOST_CHUNKS + 2)
    (warning,) = [text for text in pictures(stepped, request)[0].warnings if "too long" in text]
    assert f"the last 3 tokens were cut, promptWeighting takes {room}" in warning


def test_pipelines_that_take_prompts_as_they_are_say_so(tmp_path: Path) -> None:
    flux, whole = load(save_flux(tmp_path / "flux")), load_engine(settings(save_latent_consistency(tmp_path / "lcm")))
    for one in (flux, whole):
        (warning,) = [text for text in run(one, asked("(cat:1.5)")).image(0).warnings if "promptWeighting" in text]
        assert warning.startswith("promptWeighting has no effect")


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 12))), st.integers(1, 20))
def test_a_cache_keeps_what_was_used_last_within_its_room(uses: list[tuple[int, int]], room: int) -> None:
    sizes = dict(uses)
    cache: LruCache[int, int] = LruCache(room, lambda key: sizes[key])
    order: list[int] = []
    for key, _ in uses:
        made: list[int] = []
        assert cache.get(key, lambda key=key, made=made: made.append(key) or key) == key  # type: ignore[misc]
        assert bool(made) is (key not in order)
        if key in order:
            order.remove(key)
        if sizes[key] <= room:
            order.append(key)
            while sum(sizes[one] for one in order) > room:
                order.pop(0)
    assert len(cache) == len(order)
