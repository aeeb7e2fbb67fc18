"""Images with adapters in batches that change: in other slots, beside other keys, from graphs, in fewer bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers.models.attention_processor import FusedAttnProcessor2_0

from kubediffusion.resources.generation_job import Acceleration, FeatureCaching, GuidanceInterval
from kubediffusion.worker.engine import ImageRequest, InputImage, InputImages
from kubediffusion.worker.engine.adapters import ImageAdapter
from kubediffusion.worker.engine.arrangement import sizes_up_to
from kubediffusion.worker.execution.adapters.slots import AdapterSlots
from kubediffusion.worker.execution.adapters.weights import LoadedAdapter, LowRank
from kubediffusion.worker.execution.compile.compiler import Compiler
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.families.registry import family_of
from unit.worker import lora_files
from unit.worker.continuous_engines import load, pictures
from unit.worker.graph_captures import Captures, wait_for
from unit.worker.worker_builders import image_request, levels_apart

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.usefixtures("without_gradients"),
]

SIZE: dict[str, Any] = {"width": 64, "height": 64, "scheduler": "EulerDiscreteScheduler"}
FLOW: dict[str, Any] = {"width": 64, "height": 64}


def adapter(engine: ContinuousEngine, seed: int = 0, rank: int = 4, **drawn: Any) -> ImageAdapter:
    """An adapter for an engine's denoiser, by default for all of its layers."""
    component = engine.family.component
    factors = lora_files.factors(getattr(engine.pipeline, component), seed, rank, **drawn)
    layers = {name: LowRank(down, up.flatten(1)) for name, (down, up) in factors.items()}
    weights = LoadedAdapter(f"{seed}-{rank}-{len(layers)}", {component: layers})
    return ImageAdapter(weights.digest, 1.0, weights)


def with_adapters(request: ImageRequest, *adapters: ImageAdapter) -> ImageRequest:
    return replace(request, adapters=adapters)


@pytest.fixture
def engine(folders: Callable[[str], Path]) -> ContinuousEngine:
    return load(folders("stable_diffusion"))


def test_an_image_that_is_parked_or_moves_keeps_its_adapters(folders: Callable[[str], Path]) -> None:
    engine = load(folders("stable_diffusion"), images=2)
    first, second = adapter(engine, 0), adapter(engine, 1)
    long = [with_adapters(image_request(index, steps=12, **SIZE), (first, second)[index]) for index in range(2)]
    urgent = [with_adapters(image_request(index, steps=2, **SIZE), second) for index in (2, 3)]
    alone = {image.id.index: pictures(engine, image)[image.id.index] for image in (*long, *urgent)}
    together = pictures(engine, *long, joining={4: tuple(urgent)}, priorities={2: 5, 3: 5})
    short = with_adapters(image_request(0, steps=2, **SIZE), first)
    # The second one moves into the first's slot when that has left.
    moved = pictures(engine, short, long[1])
    for index, picture in together.items():
        assert levels_apart(picture, alone[index]) <= 1
    assert levels_apart(moved[1], alone[1]) <= 1


def test_images_of_another_size_between_two_steps_leave_adapters_as_they_were(engine: ContinuousEngine) -> None:
    first, second = adapter(engine, 0), adapter(engine, 1)
    runs = with_adapters(image_request(0, steps=6, **SIZE), first)
    other = with_adapters(image_request(1, steps=2, **{**SIZE, "width": 96}), second)
    made = pictures(engine, runs, urgent={2: (other,)})
    assert made[0] == pictures(engine, runs)[0]
    assert made[1] == pictures(engine, other)[1]


def test_a_slot_that_loses_its_adapters_keeps_nothing_of_them(engine: ContinuousEngine) -> None:
    wide, narrow = adapter(engine, 0, rank=9), adapter(engine, 1, rank=2)
    plain = image_request(0, steps=3, **SIZE)
    expected = {
        names: pictures(load_again(engine), with_adapters(plain, *names))[0] for names in ((), (narrow,), (wide,))
    }
    for names, picture in expected.items():
        pictures(engine, with_adapters(plain, wide))
        assert pictures(engine, with_adapters(plain, *names))[0] == picture


def load_again(engine: ContinuousEngine) -> ContinuousEngine:
    """Another engine of the same pipeline: nothing is in its slots."""
    return ContinuousEngine(engine.pipeline, engine.info, engine.family, sizes_up_to(4, prepared=False))


def test_acceleration_and_determinism_go_with_adapters(engine: ContinuousEngine) -> None:
    caching = Acceleration(
        feature_caching=FeatureCaching(interval=2), guidance_interval=GuidanceInterval(start=0, stop=0.5)
    )
    for shape in ({"acceleration": caching}, {"deterministic": True}):
        plain = image_request(0, "a cat", "a dog", steps=6, **SIZE, **shape)
        adapted = with_adapters(plain, adapter(engine))
        first = pictures(engine, adapted)[0]
        assert first == pictures(engine, adapted)[0]
        assert levels_apart(first, pictures(engine, plain)[0]) > 5


def test_a_graph_and_compiled_code_serve_every_adapter_of_the_same_layers(
    folders: Callable[[str], Path], captures: Captures
) -> None:
    plain_engine = load(folders("stable_diffusion"))
    compiles = Compiler(None, backend="eager")
    engine = ContinuousEngine(
        plain_engine.pipeline,
        plain_engine.info,
        plain_engine.family,
        sizes_up_to(2, prepared=True),
        compiles,
        graphs=True,
    )
    compiles.begin()
    request = image_request(0, "a cat", steps=12, **SIZE)
    adapters = [adapter(engine, seed) for seed in range(3)]
    expected = [pictures(plain_engine, with_adapters(request, one))[0] for one in adapters]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        seen = pictures(engine, with_adapters(request, adapters[0]))[0]
        assert levels_apart(seen, expected[0]) <= 1
        (prepared,) = engine.prepared_batches
        (adapted,) = (steps for mode, steps in prepared.step_runner.others.items() if mode.adapters)  # type: ignore[attr-defined]
        if adapted.captured.get(1):
            break
        wait_for(lambda: not compiles.busy)
    assert adapted.captured == {1: True}
    made = captures.count
    for one, picture in zip(adapters, expected, strict=True):
        assert levels_apart(pictures(engine, with_adapters(request, one))[0], picture) <= 1
    assert captures.count == made
    # What has no adapters runs without their layers, as ever.
    assert levels_apart(pictures(engine, request)[0], pictures(plain_engine, request)[0]) <= 1


def test_the_plain_step_knows_nothing_of_adapters(engine: ContinuousEngine) -> None:
    unet, plain = engine.pipeline.unet, image_request(0, steps=2, **SIZE)
    before = dict(unet.named_modules())
    pictures(engine, with_adapters(plain, adapter(engine)), image_request(1, steps=2, **SIZE))
    assert dict(unet.named_modules()) == before
    assert engine.family.denoiser is unet


def test_layers_that_no_adapter_named_before_are_added_once(engine: ContinuousEngine) -> None:
    slots = AdapterSlots(engine.family, 2, 8)
    attention = adapter(engine, wanted=lambda name: name.endswith("to_q"))
    whole = adapter(engine, 1)
    parts = [one.weights.components["unet"] for one in (attention, whole, attention)]  # type: ignore[attr-defined]
    versions, sizes = [], []
    for layers in parts:
        slots.extend(layers)
        slots.fill({0: layers})
        versions.append(slots.version)
        sizes.append(slots.nbytes)
    assert versions == [1, 2, 2]
    assert sizes[0] < sizes[1] == sizes[2]
    request = image_request(0, steps=3, **SIZE)
    for one in (attention, whole, attention):
        image = with_adapters(request, one)
        assert levels_apart(pictures(engine, image)[0], pictures(load_again(engine), image)[0]) <= 1


def test_projections_that_were_fused_take_the_adapters_of_their_parts(folders: Callable[[str], Path]) -> None:
    engine, fused = load(folders("stable_diffusion_xl")), load(folders("stable_diffusion_xl"))
    fused.pipeline.unet.fuse_qkv_projections()
    fused.pipeline.unet.set_attn_processor(FusedAttnProcessor2_0())
    attention = adapter(engine, strength=1.0, wanted=lambda name: name.endswith(("to_q", "to_v")))
    request = with_adapters(image_request(0, "a cat", steps=3, **SIZE), attention)
    expected = pictures(engine, request)[0]
    assert levels_apart(pictures(fused, request)[0], expected) <= 1
    assert levels_apart(pictures(fused.whole_calls, request)[0], expected) <= 1
    assert levels_apart(pictures(fused, replace(request, adapters=()))[0], expected) > 1


@pytest.mark.parametrize(("family", "kind"), [("flux", "int8"), ("stable_diffusion", "float8")])
def test_weights_in_fewer_bits_take_adapters_as_the_others_do(
    family: str, kind: str, folders: Callable[[str], Path]
) -> None:
    whole, fewer = load(folders(family)), load(folders(family), quantization=kind)
    one = adapter(whole, strength=0.5)
    plain = image_request(0, "a cat", steps=2, **FLOW)
    adapted = with_adapters(plain, one)
    mixed = pictures(fewer, adapted, replace(plain, id=image_request(1).id))
    assert levels_apart(mixed[0], pictures(whole, adapted)[0]) < levels_apart(mixed[0], pictures(whole, plain)[0])
    assert levels_apart(mixed[0], pictures(fewer, adapted)[0]) <= 1
    assert levels_apart(mixed[0], pictures(fewer.whole_calls, adapted)[0]) <= 1


def test_whole_calls_are_shared_by_images_of_the_same_adapters_alone(engine: ContinuousEngine) -> None:
    calls, one = engine.whole_calls, adapter(engine)
    plain = image_request(0, "a cat", steps=2, **SIZE)
    requests = [plain, with_adapters(image_request(1, "a cat", steps=2, **SIZE), one)]
    requests.append(with_adapters(image_request(2, "a cat", steps=2, **SIZE), replace(one, scale=0.5)))
    assert len({calls.plan(request).key for request in requests}) == 3
    made = pictures(calls, *requests)
    for request in requests:
        assert levels_apart(made[request.id.index], pictures(engine, request)[request.id.index]) <= 1
    assert levels_apart(pictures(calls, plain)[0], made[0]) == 0


def test_whole_calls_take_the_models_own_scheduler_whatever_the_call_before_them_had(
    folders: Callable[[str], Path],
) -> None:
    shape: dict[str, Any] = {"width": 64, "height": 64, "steps": 4}
    pixels = InputImage("a" * 64, 64, 64, bytes(range(256)) * (64 * 64 * 3 // 256))
    plain = image_request(0, "a cat", **shape)
    for one in ("adapters", "inputs"):
        made = []
        for before in (None, "EulerAncestralDiscreteScheduler"):
            calls = load(folders("stable_diffusion")).whole_calls
            wanted = (
                with_adapters(plain, adapter(load(folders("stable_diffusion"))))
                if one == "adapters"
                else replace(plain, inputs=InputImages(pixels))
            )
            if before is not None:
                pictures(calls, image_request(0, "a cat", scheduler=before, **shape))
            made.append(pictures(calls, wanted)[0])
        assert made[0].scheduler == made[1].scheduler
        assert levels_apart(*made) == 0


def test_a_family_of_another_denoiser_is_named_apart(engine: ContinuousEngine) -> None:
    family = family_of(engine.pipeline)
    one = adapter(engine)
    slots = AdapterSlots(engine.family, 2, 8)
    slots.extend(one.weights.components["unet"])  # type: ignore[attr-defined]
    names = {repr(family), repr(slots.family(1, 1)), repr(slots.family(1, 2)), repr(slots.family(2, 1))}
    assert len(names) == 4
