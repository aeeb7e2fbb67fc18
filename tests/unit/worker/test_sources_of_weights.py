"""Models as people have them: checkpoints in one file, variants, transformers in GGUF, components from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kubediffusion.worker.early_fetch import CONFIGURATION
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.execution.dtypes import dtype_for
from kubediffusion.worker.loading.weights import load_pipeline
from kubediffusion.worker.settings import Settings
from unit.worker.single_files import save_checkpoint, save_gguf
from unit.worker.worker_builders import settings

CPU = torch.device("cpu")


def load(item: Settings) -> tuple[Any, str]:
    return load_pipeline(item, CPU, lambda index, stored: dtype_for(item.spec.torch_dtype, index, CPU, stored))


def picture(pipeline: Any) -> np.ndarray[Any, Any]:
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        "a cat",
        num_inference_steps=2,
        width=64,
        height=64,
        output_type="np",
        generator=torch.Generator().manual_seed(3),
    ).images
    return np.asarray(images[0])


def usual(folder: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(str(folder), dtype=torch.float32)


def configuration_of(folder: Path, target: Path) -> Path:
    """Copy what is no weights."""
    for pattern in CONFIGURATION:
        for file in folder.rglob(pattern):
            (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / file.relative_to(folder))
    return target


@pytest.fixture
def checkpoint(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    save_checkpoint(usual(folders("stable_diffusion")), folder / "painter [v1].safetensors")
    return folder


def of_file(folder: Path, config: Path | None, **spec: Any) -> Settings:
    source: dict[str, Any] = {"path": str(folder), "singleFile": "painter [v1].safetensors"}
    if config is not None:
        source["configFrom"] = {"path": str(config)}
    return settings(folder, source=source, **spec)


def test_a_checkpoint_in_one_file_makes_the_images_of_its_folder(
    checkpoint: Path, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    config = configuration_of(folders("stable_diffusion"), tmp_path / "config")
    pipeline, revision = load(of_file(checkpoint, config))
    assert np.array_equal(picture(pipeline), picture(usual(folders("stable_diffusion"))))
    assert revision.startswith("sha256:")
    assert "+config@" in revision


def test_a_file_beside_its_configuration_needs_no_other(checkpoint: Path, folders: Callable[[str], Path]) -> None:
    configuration_of(folders("stable_diffusion"), checkpoint)
    pipeline, _ = load(of_file(checkpoint, None))
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert pipeline.safety_checker is None


def test_another_configuration_is_another_revision(
    checkpoint: Path, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    config = configuration_of(folders("stable_diffusion"), tmp_path / "config")
    _, before = load(of_file(checkpoint, config))
    scheduler = config / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"beta_end": 0.02}))
    _, after = load(of_file(checkpoint, config))
    assert before != after
    assert before.partition("+")[0] == after.partition("+")[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": {"singleFile": "painter.safetensors"}}, r"singleFile: there is no file painter.*painter \[v1\]"),
        ({"source": {"configFrom": None}}, r"configFrom: .*holds no model_index\.json; name a diffusers folder"),
        ({"safetyChecker": True}, "safetyChecker is true"),
        ({"components": ["vea"]}, r"components\[vea\]: StableDiffusionPipeline has no such component; it has .*vae"),
    ],
)
def test_what_is_missing_is_said_with_its_field(
    change: dict[str, Any], words: str, checkpoint: Path, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folders("stable_diffusion")
    config = configuration_of(folder, tmp_path / "config")
    source = {
        "path": str(checkpoint),
        "singleFile": "painter [v1].safetensors",
        "configFrom": {"path": str(config)},
    } | change.pop("source", {})
    if (names := change.pop("components", None)) is not None:
        change["components"] = [{"name": name, "source": {"path": str(folder / "vae")}} for name in names]
    with pytest.raises(BadModelError, match=words):
        load(settings(folder, source=source, **change))


def test_a_file_that_lacks_weights_is_no_model_of_its_configuration(
    checkpoint: Path, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    file = checkpoint / "painter [v1].safetensors"
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if "out.2" not in key}, file)
    config = configuration_of(folders("stable_diffusion"), tmp_path / "config")
    with pytest.raises(
        BadModelError, match=r"singleFile: painter \[v1\]\.safetensors lacks weights; the configuration"
    ):
        load(of_file(checkpoint, config))


def test_a_file_that_is_no_safetensors_is_refused(
    checkpoint: Path, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    (checkpoint / "painter [v1].safetensors").write_bytes(b"\x80\x04 a pickle")
    config = configuration_of(folders("stable_diffusion"), tmp_path / "config")
    with pytest.raises(BadModelError, match="cannot be loaded"):
        load(of_file(checkpoint, config))


@pytest.mark.parametrize(
    ("class_name", "words"),
    [
        ("PixArtSigmaPipeline", "no PixArtSigmaPipeline from one file"),
        ("StableDiffusionPipeline", "does not hold the whole pipeline"),
    ],
)
def test_a_file_that_is_no_whole_pipeline_says_what_to_do(
    class_name: str, words: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    config = configuration_of(folders("stable_diffusion"), tmp_path / "config")
    index = json.loads((config / "model_index.json").read_text())
    (config / "model_index.json").write_text(json.dumps(index | {"_class_name": class_name}))
    save_file({"x": torch.zeros(1)}, tmp_path / "z.safetensors")
    source = {"path": str(tmp_path), "singleFile": "z.safetensors", "configFrom": {"path": str(config)}}
    with pytest.raises(BadModelError, match=rf"singleFile: .*{words}.*spec\.components\[transformer\]"):
        load(settings(tmp_path, source=source))


def test_a_component_comes_from_elsewhere(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders("stable_diffusion")
    vae = usual(folder).vae
    with torch.no_grad():
        for tensor in vae.parameters():
            tensor.mul_(0.5)
    vae.save_pretrained(tmp_path / "other" / "vae")
    # What is replaced may be missing, or in any format.
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    shutil.rmtree(model / "vae")
    (model / "vae").mkdir()
    (model / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"")
    source = {"path": str(tmp_path / "other"), "subfolder": "vae"}
    pipeline, revision = load(settings(model, components=[{"name": "vae", "source": source}]))
    expected = usual(folder)
    expected.vae = vae
    assert np.array_equal(picture(pipeline), picture(expected))
    assert "+vae@" in revision


def test_a_component_may_be_of_another_class(folders: Callable[[str], Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    tiny: Any = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    euler: Any = diffusers.EulerDiscreteScheduler(steps_offset=1)
    tiny.save_pretrained(tmp_path / "taesd")
    euler.save_pretrained(tmp_path / "euler")
    components = [
        {"name": "vae", "source": {"path": str(tmp_path / "taesd")}},
        {"name": "scheduler", "source": {"path": str(tmp_path / "euler")}},
    ]
    pipeline, _ = load(settings(folders("stable_diffusion"), components=components))
    assert type(pipeline.vae).__name__ == "AutoencoderTiny"
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"


def test_many_components_make_no_long_revision(folders: Callable[[str], Path]) -> None:
    folder = folders("flux")
    index = json.loads((folder / "model_index.json").read_text())
    names = [name for name, entry in index.items() if isinstance(entry, list) and None not in entry]
    components = [{"name": name, "source": {"path": str(folder), "subfolder": name}} for name in names]
    pipeline, revision = load(settings(folder, components=components))
    assert len(names) == 7
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\+components@[0-9a-f]{12}", revision)
    assert np.array_equal(picture(pipeline), picture(usual(folder)))


def test_a_pickled_component_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"")
    components = [{"name": "vae", "source": {"path": str(tmp_path / "vae")}}]
    with pytest.raises(BadModelError, match=r"spec\.components\[vae\]\.source: vae/ has weights only as"):
        load(settings(folders("stable_diffusion"), components=components))


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_a_transformer_comes_in_one_file(kind: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    expected = usual(folders("flux"))
    model = tmp_path / "model"
    shutil.copytree(folders("flux"), model)
    for file in (model / "transformer").glob("*.safetensors"):
        file.unlink()
    if kind == "gguf":
        save_gguf(expected.transformer, tmp_path / "flux-Q8_0.gguf", "flux")
        name = "flux-Q8_0.gguf"
    else:
        save_file(expected.transformer.state_dict(), tmp_path / "flux.safetensors")
        name = "flux.safetensors"
    source = {"path": str(tmp_path), "singleFile": name}
    pipeline, _ = load(settings(model, components=[{"name": "transformer", "source": source}]))
    difference = np.abs(picture(pipeline) - picture(expected)).max()
    if kind == "gguf":
        assert pipeline.transformer.x_embedder.weight.dtype is torch.float32
        assert pipeline.transformer.context_embedder.weight.dtype is torch.uint8
        assert 0 < difference < 0.02
    else:
        assert difference == 0


def test_a_text_encoder_comes_as_a_folder(folders: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "clip.safetensors").write_bytes(b"")
    components = [{"name": "text_encoder", "source": {"path": str(tmp_path), "singleFile": "clip.safetensors"}}]
    with pytest.raises(BadModelError, match=r"components\[text_encoder\].*no CLIPTextModel from one file"):
        load(settings(folders("stable_diffusion"), components=components))


def test_a_variant_is_taken_where_it_is_named(folders: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(folders("stable_diffusion"), tmp_path, dirs_exist_ok=True)
    half = usual(folders("stable_diffusion")).to(torch.float16)
    with torch.no_grad():
        half.unet.conv_out.bias.add_(1)
    half.save_pretrained(tmp_path, variant="fp16")
    plain, _ = load(settings(tmp_path))
    other, _ = load(settings(tmp_path, source={"path": str(tmp_path), "variant": "fp16"}))
    moved = other.unet.conv_out.bias - plain.unet.conv_out.bias
    assert torch.allclose(moved, torch.ones_like(moved), atol=1e-2)
    with pytest.raises(BadModelError, match=r"spec\.source\.variant: .*no bf16 files.*fp16"):
        load(settings(tmp_path, source={"path": str(tmp_path), "variant": "bf16"}))
