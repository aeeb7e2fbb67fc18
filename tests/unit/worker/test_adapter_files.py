"""Which files are adapters of a model: what diffusers converts, and why all else is refused."""

from __future__ import annotations

import gc
import hashlib
import json
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kubediffusion.resources.conditions import AdapterReason
from kubediffusion.worker.engine.adapters import AdapterRefusedError, ImageAdapter
from kubediffusion.worker.execution.adapters.conversion import read_adapter
from kubediffusion.worker.execution.adapters.modules import Added, adapted
from kubediffusion.worker.execution.adapters.weights import LoadedAdapter
from kubediffusion.worker.execution.continuous import ContinuousEngine
from kubediffusion.worker.execution.twins import HookedModuleError, has_twin
from unit.worker import lora_files
from unit.worker.continuous_engines import load, pictures
from unit.worker.worker_builders import image_request, levels_apart

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SIZE: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def engines(folders: Callable[[str], Path]) -> Callable[[str], ContinuousEngine]:
    made: dict[str, ContinuousEngine] = {}

    def engine(name: str) -> ContinuousEngine:
        if name not in made:
            made[name] = load(folders(name))
        return made[name]

    return engine


def refusal(engine: ContinuousEngine, file: Path) -> tuple[AdapterReason, str]:
    with pytest.raises(AdapterRefusedError) as raised:
        engine.read_adapter(file)
    return raised.value.reason, raised.value.message


def attention(name: str) -> bool:
    """Layers that trainers adapt."""
    return name.endswith(("to_q", "to_k", "to_v", "to_out.0"))


def usual(engine: ContinuousEngine) -> lora_files.Factors:
    """Factors for some layers of a denoiser that have a name in every format."""
    flux = engine.family.component == "transformer"
    return lora_files.factors(
        engine.family.denoiser, strength=1.0, wanted=lora_files.has_original_name if flux else attention
    )


def made_with(engine: ContinuousEngine, *files: Path, scale: float = 1.0) -> Any:
    """Make an image with adapters."""
    adapters = [engine.read_adapter(file) for file in files]
    request = replace(
        image_request(0, "a cat", "a dog", **SIZE),
        adapters=tuple(ImageAdapter(weights.digest, scale, weights) for weights in adapters),
    )
    return pictures(engine, request)[0]


@pytest.mark.parametrize("form", ["peft", "diffusers", "kohya"])
@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl", "flux"])
def test_the_same_factors_are_the_same_adapter_in_every_format(
    name: str, form: str, engines: Callable[[str], ContinuousEngine], tmp_path: Path
) -> None:
    engine = engines(name)
    component = engine.family.component
    drawn = usual(engine)
    expected = lora_files.save(tmp_path / "peft.safetensors", lora_files.weights(component, drawn))
    file = lora_files.save(tmp_path / "other.safetensors", lora_files.weights(component, drawn, form))
    read, known = engine.read_adapter(file), engine.read_adapter(expected)
    assert read.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert read.rank == 4
    assert read.components.keys() == known.components.keys() == {component}
    assert read.components[component].keys() == known.components[component].keys() == drawn.keys()
    for layer, added in read.components[component].items():
        other = known.components[component][layer]
        torch.testing.assert_close(added.up @ added.down, other.up @ other.down)


@pytest.mark.parametrize("name", ["stable_diffusion", "flux"])
def test_alpha_by_rank_is_the_scale(name: str, engines: Callable[[str], ContinuousEngine], tmp_path: Path) -> None:
    engine = engines(name)
    component = engine.family.component
    drawn = usual(engine)
    whole = lora_files.save(tmp_path / "whole.safetensors", lora_files.weights(component, drawn, "kohya"))
    half = lora_files.save(tmp_path / "half.safetensors", lora_files.weights(component, drawn, "kohya", alpha=2))
    assert levels_apart(made_with(engine, whole, scale=0.5), made_with(engine, half)) <= 1
    assert levels_apart(made_with(engine, whole), made_with(engine, half)) > 1


def test_the_settings_of_peft_beside_the_weights_scale_them(
    engines: Callable[[str], ContinuousEngine], tmp_path: Path
) -> None:
    engine = engines("flux")
    drawn = lora_files.factors(engine.pipeline.transformer, wanted=attention)
    named = lora_files.weights("transformer", drawn)
    layer = next(iter(drawn))
    told = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {layer: 2}}
    save_file(named, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(told)})
    read = engine.read_adapter(tmp_path / "a.safetensors").components["transformer"]
    for name, (_, up) in drawn.items():
        torch.testing.assert_close(read[name].up, up * (0.5 if name == layer else 2.0))


@pytest.mark.parametrize(
    ("name", "encoders"),
    [("stable_diffusion", ["text_encoder"]), ("stable_diffusion_xl", ["text_encoder", "text_encoder_2"])],
)
@pytest.mark.parametrize("form", ["text", "kohya"])
def test_text_encoders_are_adapted_for_their_own_images_alone(
    form: str, name: str, encoders: list[str], engines: Callable[[str], ContinuousEngine], tmp_path: Path
) -> None:
    engine = engines(name)
    parts = [
        lora_files.weights(
            encoder,
            lora_files.factors(
                getattr(engine.pipeline, encoder), strength=1.0, wanted=lambda name: "self_attn" in name
            ),
            form,
        )
        for encoder in encoders
    ]
    denoiser = lora_files.factors(engine.pipeline.unet, wanted=attention)
    file = lora_files.save(
        tmp_path / "a.safetensors",
        *parts,
        lora_files.weights("unet", denoiser, "kohya" if form == "kohya" else "diffusers"),
    )
    weights = engine.read_adapter(file)
    assert weights.components.keys() == {"unet", *encoders}
    requests = [image_request(index, "a cat", "a dog", **SIZE) for index in range(2)]
    adapted_one = replace(requests[0], adapters=(ImageAdapter(weights.digest, 1.0, weights),))
    alone = pictures(engine, requests[1])[1]
    both = pictures(engine, adapted_one, requests[1])
    assert levels_apart(both[1], alone) <= 1
    without_text = LoadedAdapter(weights.digest + "-", {"unet": weights.components["unet"]})
    half = replace(requests[0], adapters=(ImageAdapter(without_text.digest, 1.0, without_text),))
    assert levels_apart(both[0], pictures(engine, half)[0]) > 1

    engine.pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    try:
        expected = pictures(engine.whole_calls, requests[0])[0]
    finally:
        engine.pipeline.unload_lora_weights()
    assert levels_apart(both[0], expected) <= 1


def test_no_file_but_a_safetensors_file_is_read(engines: Callable[[str], ContinuousEngine], tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path(tmp_path / "gone").touch, ()

    for name, data in {"pickle": pickle.dumps({"a": Bomb()}), "empty": b"", "short": b"\x08" * 20}.items():
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(data)
        reason, message = refusal(engines("flux"), file)
        assert reason == "NotSafetensors"
        assert file.name in message
    torch.save({"a": torch.ones(1)}, tmp_path / "torch.safetensors")
    assert refusal(engines("flux"), tmp_path / "torch.safetensors")[0] == "NotSafetensors"
    assert not (tmp_path / "gone").exists()


def test_an_adapter_of_another_model_is_refused(engines: Callable[[str], ContinuousEngine], tmp_path: Path) -> None:
    flux, unet = engines("flux"), engines("stable_diffusion")
    of_flux = lora_files.lora_of(flux.pipeline, tmp_path / "flux.safetensors")
    of_unet = lora_files.lora_of(unet.pipeline, tmp_path / "unet.safetensors")
    assert refusal(unet, of_flux)[0] == "WrongBaseModel"
    assert refusal(flux, of_unet)[0] == "WrongBaseModel"
    wider = load_file(of_flux)
    first = next(name for name in wider if name.endswith("lora_A.weight"))
    wider[first] = torch.cat([wider[first], wider[first]], dim=1)
    save_file(wider, tmp_path / "wider.safetensors")
    reason, message = refusal(flux, tmp_path / "wider.safetensors")
    assert reason == "WrongBaseModel"
    assert "made for another model" in message


@pytest.mark.parametrize("name", ["flux", "stable_diffusion"])
def test_what_is_no_lora_is_refused_with_its_keys(
    name: str, engines: Callable[[str], ContinuousEngine], tmp_path: Path
) -> None:
    engine = engines(name)
    component = engine.family.component
    drawn = lora_files.factors(getattr(engine.pipeline, component), wanted=attention)
    good, layer = lora_files.weights(component, drawn), next(iter(drawn))
    prefix = f"{component}.{layer}"
    cases = {
        "DoRA": {**good, f"{prefix}.lora_magnitude_vector": torch.ones(4)},
        "LoHa": {f"{prefix}.hada_w1_a": torch.ones(4, 4)},
        "no pair": {key: value for key, value in good.items() if key != f"{prefix}.lora_B.weight"},
        "bias": {**good, f"{prefix}.lora_B.bias": torch.ones(4)},
        "nothing": {"a": torch.ones(1)},
        "no numbers": {**good, f"{prefix}.lora_A.weight": good[f"{prefix}.lora_A.weight"] * float("nan")},
    }
    for case, shape in {"rank 0": (0, 4), "a number": (), "a vector": (4,)}.items():
        cases[case] = {
            **good,
            f"{prefix}.lora_A.weight": torch.ones(shape),
            f"{prefix}.lora_B.weight": torch.ones(shape),
        }
    for case, tensors in cases.items():
        file = tmp_path / "a.safetensors"
        save_file(tensors, file)
        reason, message = refusal(engine, file)
        assert reason in {"UnknownKeys", "WrongBaseModel"}, case
        assert message
        if case != "nothing":
            assert reason == "UnknownKeys", (case, message)


def test_a_file_that_is_overwritten_changes_nothing_that_was_read(
    engines: Callable[[str], ContinuousEngine], tmp_path: Path
) -> None:
    engine = engines("flux")
    file = lora_files.lora_of(engine.pipeline, tmp_path / "a.safetensors", seed=0)
    other = lora_files.lora_of(engine.pipeline, tmp_path / "b.safetensors", seed=1).read_bytes()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    read, again = engine.read_adapter(file), engine.read_adapter(file)
    assert read.digest == digest
    expected = {name: added.down.clone() for name, added in again.components["transformer"].items()}
    # In place, as a copy over a file does it: one that is mapped would show the new bytes.
    with file.open("r+b") as stream:
        stream.write(other)
    assert engine.read_adapter(file).digest != digest
    for name, added in read.components["transformer"].items():
        assert torch.equal(added.down, expected[name])


def test_encodings_that_are_kept_keep_no_adapter(folders: Callable[[str], Path], tmp_path: Path) -> None:
    engine = load(folders("stable_diffusion"))
    text = lora_files.weights("text_encoder", lora_files.factors(engine.pipeline.text_encoder), "text")
    weights = engine.read_adapter(lora_files.save(tmp_path / "a.safetensors", text))
    request = replace(
        image_request(0, "a cat", "a dog", **SIZE), adapters=(ImageAdapter(weights.digest, 1.0, weights),)
    )
    pictures(engine, request)
    known = weakref.ref(weights)
    del request, weights
    gc.collect()
    assert known() is None


def test_a_rank_above_the_workers_is_refused_with_the_setting(
    engines: Callable[[str], ContinuousEngine], tmp_path: Path
) -> None:
    engine = engines("flux")
    file = lora_files.lora_of(engine.pipeline, tmp_path / "a.safetensors", rank=9)
    assert read_adapter(file, engine.pipeline, 9).rank == 9
    with pytest.raises(AdapterRefusedError, match=r"rank 9, more than the 8 .*KUBEDIFFUSION_ADAPTER_RANK") as raised:
        read_adapter(file, engine.pipeline, 8)
    assert raised.value.reason == "RankTooLarge"
    with pytest.raises(AdapterRefusedError, match="takes no adapters"):
        read_adapter(file, engine.pipeline, 0)


def test_a_model_whose_modules_are_hooked_has_no_twin() -> None:
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert has_twin(model)
    model[0].forward = model[0].forward
    assert not has_twin(model)
    with pytest.raises(HookedModuleError, match="0 has a forward"):
        adapted(model, {"0.0": None}, lambda _name, _layer: Added())
