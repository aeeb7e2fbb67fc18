"""What stays off the device: decided from numbers, and harmless to what is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks.hooks import HookRegistry
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.diffusion_model import Measure, MemorySettings
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.loading.components import Target
from kubediffusion.worker.loading.device import DeviceMemory
from kubediffusion.worker.loading.memory_needs import memory_needs
from kubediffusion.worker.loading.memory_plan import MemoryNeeds, MemoryPlan, MemoryShortError, plan_memory
from kubediffusion.worker.loading.placement import offloaded_components, place, plan_of
from kubediffusion.worker.loading.quantization import Quantizer
from kubediffusion.worker.loading.weights import choose_plan
from kubediffusion.worker.sources import LocalModel, read_index
from unit.worker.continuous_engines import pictures
from unit.worker.single_files import save_checkpoint, save_gguf
from unit.worker.test_sources_of_weights import load, picture, usual
from unit.worker.worker_builders import image_request, settings

CPU = torch.device("cpu")
GIB = 2**30

NEEDS = MemoryNeeds(
    denoiser=24 * GIB,
    denoiser_group=GIB,
    text_encoders=9 * GIB,
    text_encoder_layer=GIB // 4,
    rest=GIB // 4,
    step=GIB,
    decode=3 * GIB,
    decode_tile=GIB,
)

sizes = st.integers(0, 2**40)
measures = st.sampled_from(Measure)


@st.composite
def any_needs(draw: st.DrawFn) -> MemoryNeeds:
    denoiser, encoders, decode = draw(sizes), draw(sizes), draw(sizes)
    return MemoryNeeds(
        denoiser=denoiser,
        denoiser_group=draw(st.integers(0, denoiser)),
        text_encoders=encoders,
        text_encoder_layer=draw(st.integers(0, encoders)),
        rest=draw(sizes),
        step=draw(sizes),
        decode=decode,
        decode_tile=draw(st.integers(0, decode)),
    )


any_settings = st.builds(MemorySettings, text_encoder_offload=measures, vae_tiling=measures, group_offload=measures)


def planned(needs: MemoryNeeds, available: int | None, item: MemorySettings) -> MemoryPlan | None:
    try:
        return plan_memory(needs, available, item)
    except MemoryShortError:
        return None


@pytest.mark.parametrize(
    ("gib", "plan"),
    [
        (80, MemoryPlan()),
        (32, MemoryPlan(text_encoders_offloaded=True)),
        (27, MemoryPlan(text_encoders_offloaded=True, tiled=True)),
        (12, MemoryPlan(text_encoders_offloaded=True, tiled=True, groups_offloaded=True)),
    ],
)
def test_each_measure_is_taken_where_those_before_it_do_not_suffice(gib: int, plan: MemoryPlan) -> None:
    assert plan_memory(NEEDS, gib * GIB, MemorySettings()) == plan


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    item = MemorySettings(group_offload=Measure.NEVER)
    with pytest.raises(MemoryShortError) as error:
        plan_memory(NEEDS, 12 * GIB, item)
    assert str(error.value) == (
        "the model needs 26.5 GiB of the device's memory (weights 24.5 GiB, a step 1.0 GiB, decoding 1.0 GiB) and may "
        "take 12.0 GiB; all its weights are 33.2 GiB. Ask for a device with more memory, or for weights in fewer bits "
        "by spec.quantization, or allow spec.memory.groupOffload"
    )


@given(any_needs(), sizes, any_settings)
def test_a_plan_never_takes_more_than_there_is_and_keeps_to_the_settings(
    needs: MemoryNeeds, available: int, item: MemorySettings
) -> None:
    plan = planned(needs, available, item)
    if plan is None:
        return
    assert plan.peak(needs) <= available
    done = (plan.text_encoders_offloaded, plan.tiled, plan.groups_offloaded)
    for taken, measure in zip(done, (item.text_encoder_offload, item.vae_tiling, item.group_offload), strict=True):
        assert measure is Measure.AUTO or taken is (measure is Measure.ALWAYS)


@given(any_needs(), sizes, any_settings)
def test_a_model_is_refused_only_where_no_plan_fits(needs: MemoryNeeds, available: int, item: MemorySettings) -> None:
    if planned(needs, available, item) is not None:
        return
    kinds = (item.text_encoder_offload, item.vae_tiling, item.group_offload)
    for choice in itertools.product((False, True), repeat=3):
        allowed = all(
            kind is Measure.AUTO or chosen is (kind is Measure.ALWAYS)
            for kind, chosen in zip(kinds, choice, strict=True)
        )
        assert not allowed or MemoryPlan(*choice).peak(needs) > available


@given(any_needs(), sizes, sizes, any_settings)
def test_more_memory_never_asks_for_more_measures(
    needs: MemoryNeeds, available: int, more: int, item: MemorySettings
) -> None:
    before, after = planned(needs, available, item), planned(needs, available + more, item)
    if before is None:
        return
    assert after is not None
    assert set(after.measures) <= set(before.measures)
    assert set(plan_memory(needs, None, item).measures) <= set(after.measures)


def target_of(folder: Path, dtype: torch.dtype, **spec: Any) -> Target:
    item, index = settings(folder, **spec).spec, read_index(folder)
    return Target(LocalModel(folder, ""), index, item, dtype, CPU, Quantizer(item, index, dtype, CPU))


def needs_of(folder: Path, dtype: torch.dtype, **spec: Any) -> MemoryNeeds:
    return memory_needs(target_of(folder, dtype, **spec))


def held(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())


@pytest.mark.parametrize("family", ["flux", "stable_diffusion_xl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_headers_tell_what_weights_take(family: str, dtype: torch.dtype, folders: Callable[[str], Path]) -> None:
    needs, pipeline = needs_of(folders(family), dtype), usual(folders(family)).to(dtype)
    denoiser = pipeline.transformer if family == "flux" else pipeline.unet
    assert needs.denoiser == held(denoiser)
    assert needs.text_encoders == held(pipeline.text_encoder) + held(pipeline.text_encoder_2)
    assert needs.rest == held(pipeline.vae)
    assert 0 < needs.denoiser_group < needs.denoiser
    assert 0 < needs.text_encoder_layer < needs.text_encoders
    # What is quantized is not moved to and fro.
    fewer = needs_of(folders(family), dtype, quantization="float8")
    assert fewer.denoiser == fewer.denoiser_group < needs.denoiser


def test_a_checkpoint_that_is_held_in_fewer_bits_is_known_to_take_less(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folders("stable_diffusion")
    file = save_checkpoint(usual(folder), tmp_path / "a.safetensors")
    kinds = ("none", "float8")
    targets = [target_of(folder, torch.float32, quantization=kind) for kind in kinds]
    plain, fewer = (memory_needs(replace(each, model=LocalModel(folder, "", file))) for each in targets)
    from_folder = [needs_of(folder, torch.float32, quantization=kind) for kind in kinds]
    # The two name tensors otherwise, and shape a few of the VAE's otherwise.
    assert [plain.denoiser, fewer.denoiser] == [needs.denoiser for needs in from_folder]
    assert fewer.denoiser < plain.denoiser


@pytest.mark.parametrize("family", ["flux", "stable_diffusion"])
@pytest.mark.parametrize(
    ("memory", "plan"),
    [
        ({"textEncoderOffload": "Always"}, MemoryPlan(text_encoders_offloaded=True)),
        ({"vaeTiling": "Always"}, MemoryPlan(tiled=True)),
        ({"groupOffload": "Always"}, MemoryPlan(groups_offloaded=True)),
        (
            {"textEncoderOffload": "Always", "vaeTiling": "Always", "groupOffload": "Always"},
            MemoryPlan(text_encoders_offloaded=True, tiled=True, groups_offloaded=True),
        ),
    ],
)
def test_measures_change_no_pixel(
    family: str, memory: dict[str, str], plan: MemoryPlan, folders: Callable[[str], Path]
) -> None:
    pipeline, _ = load(settings(folders(family), memory=memory))
    assert plan_of(pipeline) == plan
    assert np.array_equal(picture(pipeline), picture(usual(folders(family))))


def test_weights_come_when_they_are_needed(folders: Callable[[str], Path]) -> None:
    pipeline, _ = load(settings(folders("flux"), memory={"groupOffload": "Always", "textEncoderOffload": "Always"}))
    assert sorted(offloaded_components(pipeline)) == ["text_encoder", "text_encoder_2", "transformer"]
    block = pipeline.transformer.transformer_blocks[0]
    hook: Any = HookRegistry.check_if_exists_or_initialize(block).get_hook("group_offloading")
    came, onload = [], hook.group.onload_

    def comes() -> None:
        came.append(block)
        onload()

    hook.group.onload_ = comes
    picture(pipeline)
    # Once in each of two steps.
    assert len(came) == 2


@pytest.mark.parametrize("side", [64, 1024])
def test_tiles_have_one_size_whatever_the_model_was_trained_on(side: int, folders: Callable[[str], Path]) -> None:
    pipeline = usual(folders("stable_diffusion"))
    pipeline.vae.tile_sample_min_size, pipeline.vae.tile_latent_min_size = side, side // 2
    placed = place(pipeline, MemoryPlan(tiled=True), CPU)
    assert plan_of(placed).fields == ("vaeTiling",)
    assert (placed.vae.tile_sample_min_size, placed.vae.tile_latent_min_size) == (512, 256)


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(folders: Callable[[str], Path]) -> None:
    with pytest.raises(BadModelError, match=r"spec\.memory: the model needs .* may take 1\.0 MiB; all its weights are"):
        load(settings(folders("flux"), memory={"deviceMib": 1}))


def test_weights_that_cannot_be_moved_are_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    save_gguf(usual(folders("flux")).transformer, tmp_path / "a.gguf", "flux")
    components = [{"name": "transformer", "source": {"path": str(tmp_path), "singleFile": "a.gguf"}}]
    with pytest.raises(BadModelError, match=r"spec\.memory\.groupOffload: weights in gguf cannot stay"):
        load(settings(folders("flux"), components=components, memory={"groupOffload": "Always"}))


def test_what_cannot_decode_in_tiles_is_refused(folders: Callable[[str], Path]) -> None:
    pipeline = usual(folders("stable_diffusion"))
    del pipeline.vae.use_tiling
    with pytest.raises(BadModelError, match=r"spec\.memory\.vaeTiling: StableDiffusionPipeline cannot"):
        place(pipeline, MemoryPlan(tiled=True), CPU)


def test_memory_that_others_take_for_now_is_no_reason_to_refuse_the_model(folders: Callable[[str], Path]) -> None:
    target = target_of(folders("flux"), torch.float32)
    with pytest.raises(MemoryShortError):
        choose_plan(target, DeviceMemory(free=2**20, total=2**40))
    assert choose_plan(target, DeviceMemory(free=None, total=None)) == MemoryPlan()


def test_the_start_says_what_is_done(folders: Callable[[str], Path]) -> None:
    told: list[tuple[EngineReason, str]] = []
    small = {"width": 64, "height": 64}
    asked = settings(
        folders("flux"), defaults=small, compile=True, memory={"groupOffload": "Always", "textEncoderOffload": "Always"}
    )
    engine = load_engine(asked, lambda reason, words: told.append((reason, words)))
    assert engine.info.name == "diffusers"
    assert engine.info.memory == ("textEncoderOffload", "groupOffload")
    said = dict(told)
    stay = "text encoders stay in main memory"
    assert said[EngineReason.LOADING_WEIGHTS] == (
        f"the weights go to the CPU; {stay}; the denoiser's blocks stay in main memory"
    )
    assert said[EngineReason.READY].startswith(
        "the worker takes jobs, by the pipeline's own call: the denoiser's blocks"
    )
    assert f"uncompiled: blocks that come from main memory are not compiled; {stay}" in said[EngineReason.READY]


def test_a_family_steps_beside_text_encoders_that_stay_away(folders: Callable[[str], Path]) -> None:
    away, usually = (
        load_engine(settings(folders("stable_diffusion"), memory={"textEncoderOffload": measure}))
        for measure in ("Always", "Never")
    )
    assert away.info.name == usually.info.name == "continuous"
    assert (away.info.memory, usually.info.memory) == (("textEncoderOffload",), ())
    request = image_request(steps=2, width=64, height=64)
    assert pictures(away, request)[0].rgb == pictures(usually, request)[0].rgb


def test_blocks_in_fewer_bits_come_when_they_are_needed(folders: Callable[[str], Path]) -> None:
    there, _ = load(settings(folders("flux"), quantization="float8"))
    away, _ = load(settings(folders("flux"), quantization="float8", memory={"groupOffload": "Always"}))
    assert np.array_equal(picture(there), picture(away))
