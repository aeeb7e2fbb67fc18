"""The executor of whole calls, by tiny models of kinds that a pipeline's own call is easily wrong with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from census import registry
from kubediffusion.worker.engine import BadModelError, ImageOutput
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.dtypes import dtype_for
from kubediffusion.worker.execution.generic import PipelineEngine
from kubediffusion.worker.loading.files import components_of, only_variant, stored_dtype
from kubediffusion.worker.loading.weights import check_class, load_pipeline
from kubediffusion.worker.sources import LocalModel
from unit.worker.worker_builders import Recorder, image_request, levels_apart, settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CPU = torch.device("cpu")
SIZE: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def engines() -> Callable[[str], PipelineEngine]:
    made: dict[str, PipelineEngine] = {}

    def engine(name: str) -> PipelineEngine:
        if name not in made:
            pipeline, _ = load_pipeline(settings(registry.folder(name)), CPU, lambda *_: torch.float32)
            from kubediffusion.worker.execution.build import info_of

            made[name] = PipelineEngine(pipeline, info_of(pipeline, "sha256:0"))
        return made[name]

    return engine


def outputs(engine: PipelineEngine, *requests: Any) -> list[ImageOutput]:
    seen = Recorder()
    engine.run(requests, seen)
    return [seen.image(request.id.index) for request in requests]


# The mates differ in length and in their negative prompt; both change what a pipeline pads and guides.
@pytest.mark.parametrize(
    "name",
    [
        # All classes whose images share calls, and of the others those that pad prompts to the longest.
        "flux-dev",
        "stable-diffusion",
        "stable-diffusion-3",
        "stable-diffusion-xl",
        "cogview-3-plus",
        "hunyuan-image-2.1",
        "kandinsky-5",
        "lumina-2",
        "qwen-image",
        "qwen-image-2.1",
        "sana",
    ],
)
def test_mates_do_not_change_an_image(name: str, engines: Callable[[str], PipelineEngine]) -> None:
    engine = engines(name)
    requests = [
        image_request(0, "a photo of a cat, and of nothing else at all", None, **SIZE),
        image_request(1, "a dog", "", **SIZE),
        image_request(2, "two birds", "a tree", **SIZE),
    ]
    alone = [outputs(engine, request)[0] for request in requests]
    for first, second in zip(alone, outputs(engine, *requests), strict=True):
        assert levels_apart(first, second) <= 1


def test_images_of_a_class_that_is_not_known_to_be_indifferent_have_no_key_in_common(
    engines: Callable[[str], PipelineEngine],
) -> None:
    one, other = image_request(0), image_request(1)
    assert engines("cogview-3-plus").plan(one).key != engines("cogview-3-plus").plan(other).key
    assert engines("stable-diffusion").plan(one).key == engines("stable-diffusion").plan(other).key


def test_no_negative_prompt_and_an_empty_one_share_no_call(engines: Callable[[str], PipelineEngine]) -> None:
    without, empty, given = (image_request(0, negative=text) for text in (None, "", "x"))
    for name, shares in (("stable-diffusion-xl", False), ("stable-diffusion", True)):
        plan = engines(name).plan
        assert (plan(without).key == plan(empty).key) is shares
        assert plan(empty).key == plan(given).key


def test_what_draws_from_the_global_generator_repeats(engines: Callable[[str], PipelineEngine]) -> None:
    engine = engines("ernie-image-with-enhancer")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = outputs(engine, image_request(0, **SIZE))[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert outputs(engine, image_request(0, **SIZE))[0].rgb == first.rgb


def test_arguments_that_exclude_each_other_are_not_given(engines: Callable[[str], PipelineEngine]) -> None:
    # Each has a default that refuses what every job gives: a guidance scale, a number of steps.
    outputs(engines("ideogram-4"), image_request(0, **SIZE))
    outputs(engines("sana-sprint"), image_request(0, steps=3, width=1024, height=1024))


def test_steps_are_told_and_a_call_ends_without_a_callback(engines: Callable[[str], PipelineEngine]) -> None:
    engine = engines("longcat-image")
    wish = image_request(0, width=64, height=64, steps=4)
    seen = Recorder()
    engine.run((wish,), seen)
    assert seen.steps[0] == [1, 2, 3, 4]
    seen = Recorder(unwanted={0: 1})
    engine.run((wish,), seen)
    assert (seen.outcomes, seen.steps[0]) == ({}, [1])


@pytest.mark.parametrize("name", ["kandinsky-2.1-prior", "kandinsky-2.2-prior"])
def test_a_class_that_makes_no_images_is_refused(name: str) -> None:
    with pytest.raises(BadModelError, match="makes no images, but"):
        load_engine(settings(registry.folder(name)))


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("WanPipeline", "makes no images, but frames"),
        ("StableAudioPipeline", "makes no images, but audios"),
        ("LLaDA2Pipeline", "makes no images, but sequences, texts"),
        ("OnnxStableDiffusionPipeline", "not for PyTorch"),
        ("CosmosTextToWorldPipeline", "makes no images"),
        ("StableDiffusionImageVariationPipeline", "takes no prompt"),
        ("NoSuchPipeline", "has no pipeline class NoSuchPipeline"),
    ],
)
def test_a_class_is_refused_before_its_weights_are_read(pipeline: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(BadModelError, match=words):
        load_engine(settings(tmp_path))


def test_a_class_whose_packages_are_missing_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers
    from diffusers.utils.import_utils import DummyObject

    class KolorsPipeline(metaclass=DummyObject):
        _backends: tuple[str, ...] = ("torch", "sentencepiece")

    monkeypatch.setattr(diffusers, "KolorsPipeline", KolorsPipeline)
    with pytest.raises(BadModelError, match="sentencepiece"):
        check_class({"_class_name": "KolorsPipeline"})


def test_a_model_that_makes_no_image_from_text_alone_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(registry.folder("pixart-sigma"), folder)
    config = folder / "transformer" / "config.json"
    # A size for which the pipeline has no table of sizes.
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 48}))
    with pytest.raises(BadModelError, match="made no image from text when it was tried: PipelineFailed: ValueError"):
        load_engine(settings(folder))


def test_a_model_without_its_third_text_encoder_loads() -> None:
    pipeline, _ = load_pipeline(
        settings(registry.folder("stable-diffusion-3-without-t5")), CPU, lambda *_: torch.float32
    )
    assert pipeline.text_encoder_3 is None


def test_a_folder_with_one_variant_alone_loads(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(registry.folder("stable-diffusion"), folder)
    assert only_variant(components_of(folder)) is None
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert only_variant(components_of(folder)) == "fp16"
    pipeline, _ = load_pipeline(settings(folder), CPU, lambda *_: torch.float32)
    assert pipeline.unet.dtype == torch.float32


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_auto_takes_the_precision_that_weights_are_stored_in(stored: torch.dtype, tmp_path: Path) -> None:
    from kubediffusion.resources.diffusion_model import TorchDtype

    folder = tmp_path / "model"
    shutil.copytree(registry.folder("stable-diffusion"), folder)
    assert stored_dtype(LocalModel(folder, "")) is torch.float32
    for file in (folder / "unet").glob("*.safetensors"):
        save_file({name: tensor.to(stored) for name, tensor in load_file(file).items()}, file)
    assert stored_dtype(LocalModel(folder, "")) is stored
    index = {"_class_name": "StableDiffusionPipeline"}
    cuda = torch.device("cuda")
    assert dtype_for(TorchDtype.AUTO, index, cuda, stored) is stored
    assert dtype_for(TorchDtype.FLOAT32, index, cuda, stored) is torch.float32
    assert dtype_for(TorchDtype.AUTO, index, CPU, stored) is torch.float32


def test_guidance_without_effect_is_told(engines: Callable[[str], PipelineEngine]) -> None:
    def warnings(name: str, **wish: Any) -> tuple[str, ...]:
        return outputs(engines(name), image_request(0, **SIZE, **wish))[0].warnings

    assert any("guidanceScale has no effect" in text for text in warnings("flux-schnell"))
    assert any("guidanceScale has no effect" in text for text in warnings("flux-2-klein"))
    assert any("only with negativePrompt" in text for text in warnings("qwen-image"))
    assert warnings("qwen-image", negative="a tree") == ()
    # It is guided, and has no property that says so.
    assert warnings("bria-fibo", negative="a tree") == ()
    # Z-Image guides from any scale above zero.
    assert warnings("z-image-turbo", guidance=0.5, negative="a tree") == ()
    assert any("negativePrompt has no effect" in text for text in warnings("z-image-turbo", guidance=0, negative="x"))


def test_a_family_that_guides_by_the_empty_prompt_says_so() -> None:
    engine = load_engine(settings(registry.folder("flux-2-klein-base")))
    seen = Recorder()
    engine.run((image_request(0, negative="a tree", **SIZE),), seen)
    assert seen.image(0).warnings == ("negativePrompt has no effect: Flux2KleinPipeline does not heed it",)


@pytest.mark.parametrize(
    "name",
    ["flux-2", "flux-2-klein", "kandinsky-5", "longcat-image", "ovis-image", "qwen-image", "qwen-image-2.1", "z-image"],
)
def test_a_call_opens_nothing_that_its_prompt_names(
    name: str, engines: Callable[[str], PipelineEngine], tmp_path: Path, touched: list[str]
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"")
    engine = engines(name)
    touched.clear()
    for prompt in ("http://127.0.0.1:9/planted.png", str(secret)):
        outputs(engine, image_request(0, prompt, **SIZE))
    assert not [seen for seen in touched if "planted" in seen or "secret" in seen or "127.0.0.1" in seen]
