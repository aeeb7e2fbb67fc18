"""Weights in fewer bits: quantized when they are loaded, or stored so."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from safetensors.torch import save_file

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.loading.quantization import quantized_components
from kubediffusion.worker.optional_libraries import OPTIONAL, hide_libraries, needed_libraries
from unit.worker.single_files import save_checkpoint, save_gguf
from unit.worker.test_sources_of_weights import configuration_of, load, picture, usual
from unit.worker.worker_builders import settings


def difference(pipeline: Any, folder: Path) -> float:
    return float(np.abs(picture(pipeline) - picture(usual(folder))).max())


@pytest.mark.parametrize("family", ["flux", "stable_diffusion"])
@pytest.mark.parametrize("kind", ["float8", "int8"])
def test_the_denoiser_is_held_in_fewer_bits(kind: str, family: str, folders: Callable[[str], Path]) -> None:
    pipeline, _ = load(settings(folders(family), quantization=kind))
    denoiser = "transformer" if family == "flux" else "unet"
    assert quantized_components(pipeline) == {denoiser: kind}
    assert 0 < difference(pipeline, folders(family)) < 0.05


def test_each_component_may_be_held_otherwise(folders: Callable[[str], Path]) -> None:
    components = [
        {"name": "text_encoder_2", "quantization": "int8"},
        {"name": "transformer", "quantization": "none"},
    ]
    pipeline, _ = load(settings(folders("flux"), quantization="float8", components=components))
    assert quantized_components(pipeline) == {"text_encoder_2": "int8"}
    assert 0 < difference(pipeline, folders("flux")) < 0.05


def test_what_comes_from_elsewhere_is_quantized_too(folders: Callable[[str], Path]) -> None:
    source = {"path": str(folders("flux")), "subfolder": "transformer"}
    components = [{"name": "transformer", "source": source, "quantization": "float8"}]
    pipeline, _ = load(settings(folders("flux"), components=components))
    assert quantized_components(pipeline) == {"transformer": "float8"}


@pytest.mark.parametrize("kind", ["float8", "int8"])
def test_what_comes_in_one_file_is_held_as_what_comes_from_a_folder(
    kind: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folders("stable_diffusion")
    save_checkpoint(usual(folder), tmp_path / "a.safetensors")
    config = configuration_of(folder, tmp_path / "config")
    source = {"path": str(tmp_path), "singleFile": "a.safetensors", "configFrom": {"path": str(config)}}
    asked = {"quantization": kind, "components": [{"name": "text_encoder", "quantization": "int8"}]}
    whole, _ = load(settings(folder, source=source, **asked))
    expected, _ = load(settings(folder, **asked))
    assert quantized_components(whole) == {"unet": kind, "text_encoder": "int8"}
    assert quantized_components(whole) == quantized_components(expected)
    assert np.array_equal(picture(whole), picture(expected))
    with pytest.raises(BadModelError, match=r"spec\.quantization: unet comes from a\.safetensors.*not in nf4"):
        load(settings(folder, source=source, quantization="nf4"))
    # Its denoiser may come from a folder all the same.
    components = [{"name": "unet", "source": {"path": str(folder), "subfolder": "unet"}}]
    pipeline, _ = load(settings(folder, source=source, quantization="float8", components=components))
    assert quantized_components(pipeline) == {"unet": "float8"}
    assert 0 < difference(pipeline, folder) < 0.05


def test_a_component_in_one_file_is_held_in_fewer_bits_and_takes_as_much_memory_as_from_a_folder(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folders("flux")
    save_file(usual(folder).transformer.state_dict(), tmp_path / "a.safetensors")
    source = {"path": str(tmp_path), "singleFile": "a.safetensors"}
    components = [{"name": "transformer", "source": source, "quantization": "float8"}]
    pipeline, _ = load(settings(folder, components=components))
    expected, _ = load(settings(folder, quantization="float8"))
    assert quantized_components(pipeline) == {"transformer": "float8"}
    assert np.array_equal(picture(pipeline), picture(expected))


def test_a_repository_that_is_stored_quantized_loads(folders: Callable[[str], Path], tmp_path: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    shutil.copytree(folders("flux"), tmp_path / "model")
    kind: Any = diffusers.FluxTransformer2DModel
    stored = kind.from_pretrained(
        str(folders("flux") / "transformer"), quantization_config=diffusers.TorchAoConfig(Int8WeightOnlyConfig())
    )
    shutil.rmtree(tmp_path / "model" / "transformer")
    stored.save_pretrained(tmp_path / "model" / "transformer")
    for asked in ("none", "int8"):
        pipeline, _ = load(settings(tmp_path / "model", quantization=asked))
        assert quantized_components(pipeline) == {"transformer": "int8"}
        assert 0 < difference(pipeline, folders("flux")) < 0.05
    with pytest.raises(BadModelError, match=r"spec\.quantization: nf4 is not how transformer is stored"):
        load(settings(tmp_path / "model", quantization="nf4"))
    assert needed_libraries(settings(tmp_path / "model").spec, tmp_path / "model") == {"torchao"}


def test_a_gguf_file_is_held_as_it_is(folders: Callable[[str], Path], tmp_path: Path) -> None:
    save_gguf(usual(folders("flux")).transformer, tmp_path / "a.gguf", "flux")
    components = [{"name": "transformer", "source": {"path": str(tmp_path), "singleFile": "a.gguf"}}]
    pipeline, _ = load(settings(folders("flux"), components=components))
    assert quantized_components(pipeline) == {"transformer": "gguf"}
    with pytest.raises(BadModelError, match=r"spec\.quantization: transformer comes from a\.gguf"):
        load(settings(folders("flux"), components=components, quantization="float8"))


def stored_as(method: str, folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    file = target / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": method}}))
    return target


@pytest.mark.parametrize(
    ("stored", "spec", "words"),
    [
        ("bitsandbytes", {}, r"bitsandbytes: it needs the package.*spec\.quantization to nf4.*workers\.image"),
        ("quanto", {}, r"quanto: it needs the package optimum\.quanto.*set spec\.workers\.image"),
        (None, {"quantization": "nf4"}, r"spec\.quantization: nf4 needs the package bitsandbytes"),
        (
            None,
            {"components": [{"name": "tokenizer", "quantization": "int8"}]},
            r"components\[tokenizer\]\.quantization: tokenizer has no weights",
        ),
    ],
)
def test_what_cannot_be_quantized_says_why(
    stored: str | None, spec: dict[str, Any], words: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folders("flux") if stored is None else stored_as(stored, folders("flux"), tmp_path / "model")
    # As for a worker whose model does not ask for it.
    assert importlib.util.find_spec("bitsandbytes") is None
    with pytest.raises(BadModelError, match=words):
        load(settings(folder, **spec))


def test_nf4_is_for_cuda_devices(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    with pytest.raises(BadModelError, match=r"spec\.quantization: nf4 needs a CUDA device"):
        load(settings(folders("flux"), quantization="nf4"))


def test_the_engine_names_what_it_runs_and_does_not_compile_it(folders: Callable[[str], Path]) -> None:
    told: list[tuple[EngineReason, str]] = []
    asked = settings(folders("flux"), quantization="float8", compile=True)
    engine = load_engine(asked, lambda reason, words: told.append((reason, words)))
    assert engine.info.quantization == {"transformer": "float8"}
    assert engine.info.name == "continuous"
    words = "the worker takes jobs, uncompiled: a transformer in float8 is not compiled"
    assert (EngineReason.READY, words) in told


def test_libraries_that_a_model_does_not_need_are_hidden(folders: Callable[[str], Path]) -> None:
    folder = folders("flux")
    assert needed_libraries(settings(folder).spec, folder) == set()
    assert needed_libraries(settings(folder, quantization="nf4").spec, None) == {"bitsandbytes"}
    components = [{"name": "text_encoder", "quantization": "int8"}]
    assert needed_libraries(settings(folder, components=components).spec, folder) == {"torchao"}
    # What somebody has imported stays.
    hide_libraries(OPTIONAL)
    assert sys.modules["torchao"] is not None
