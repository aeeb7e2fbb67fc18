"""What may be loaded, and what a model is called by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubediffusion.resources.diffusion_model import DiffusionModelSpec
from kubediffusion.worker import sources
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.sources import check_folder, content_revision, local_folder

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": [None, None],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return tmp_path


def spec(**changes: Any) -> DiffusionModelSpec:
    return DiffusionModelSpec.from_wire({"source": {"path": "/x"}, **changes})


def test_a_sound_folder_passes(folder: Path) -> None:
    assert check_folder(folder, spec())["_class_name"] == "StableDiffusionPipeline"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "holds no model_index.json"), ("{", "is not JSON"), ("{}", "names no pipeline class")],
)
def test_a_folder_that_is_no_pipeline(folder: Path, content: str | None, words: str) -> None:
    index = folder / "model_index.json"
    index.unlink() if content is None else index.write_text(content)
    with pytest.raises(BadModelError, match=words):
        check_folder(folder, spec())


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadModelError, match="does not exist"):
        check_folder(tmp_path / "nowhere", spec())


def test_pickled_weights_need_permission(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BadModelError, match=r"unet/ has weights only as diffusion_pytorch_model\.bin"):
        check_folder(folder, spec())
    check_folder(folder, spec(useSafetensors=False))


@pytest.mark.parametrize("way", ["pipeline", "component", "auto_map"])
def test_code_of_the_repository_needs_permission(folder: Path, way: str) -> None:
    index: dict[str, Any] = dict(INDEX)
    if way == "pipeline":
        index["_class_name"] = ["my_pipeline", "MyPipeline"]
    elif way == "component":
        index["unet"] = ["my_unet", "MyUNet"]
        (folder / "unet" / "my_unet.py").touch()
    else:
        (folder / "unet" / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "code.Model"}}))
        (folder / "unet" / "code.py").touch()
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadModelError, match="trustRemoteCode"):
        check_folder(folder, spec())
    check_folder(folder, spec(trustRemoteCode=True))


def test_a_safety_checker_must_be_there_if_asked_for(folder: Path) -> None:
    with pytest.raises(BadModelError, match="no safety checker"):
        check_folder(folder, spec(safetyChecker=True))


def test_a_revision_names_content_wherever_it_lies(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copy")
    for file in (file for file in folder.rglob("*") if file.is_file()):
        target = copy / file.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    assert content_revision(copy) == content_revision(folder)
    (copy / "README.md").write_text("what it is")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "lock").touch()
    assert content_revision(copy) == content_revision(folder)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"Weights")
    assert content_revision(copy) != content_revision(folder)


def test_a_large_folder_is_named_by_its_edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, middle, end = tmp_path / "model.safetensors", 3 * 2**19, 3 * 2**20 - 1

    def revision(changed: int | None = None) -> str:
        content = bytearray(3 * 2**20)
        if changed is not None:
            content[changed] = 1
        weights.write_bytes(content)
        return content_revision(tmp_path)

    assert len({revision(), revision(0), revision(middle), revision(end)}) == 4
    monkeypatch.setattr(sources, "WHOLE_HASH_BYTES", 0)
    assert revision(middle) == revision()
    assert len({revision(), revision(0), revision(end)}) == 3


def test_a_volume_lies_where_it_is_mounted(tmp_path: Path) -> None:
    volume = spec(source={"persistentVolumeClaim": {"claimName": "models"}}).source
    assert local_folder(volume, tmp_path) == tmp_path
    assert local_folder(spec(source={"huggingFace": {"repository": "a/b"}}).source, tmp_path) is None
    assert local_folder(spec().source, None) == Path("/x")
