"""Where models come from, and what a worker does with one that it cannot load."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import diffusers
from torchao.quantization import Int8WeightOnlyConfig

from integration.worker.bench_of_workers import START_SECONDS, Bench, start
from kubediffusion.local import installation
from kubediffusion.resources.failures import BAD_MODEL_EXIT_CODE
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import present
from unit.worker.single_files import save_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def stored_in_int8(model: Path, target: Path) -> Path:
    """Copy a model whose denoiser is stored quantized."""
    shutil.copytree(model, target)
    kind: Any = diffusers.UNet2DConditionModel
    quantization = diffusers.TorchAoConfig(Int8WeightOnlyConfig())
    unet = kind.from_pretrained(str(model / "unet"), quantization_config=quantization)
    shutil.rmtree(target / "unet")
    unet.save_pretrained(target / "unet")
    return target


async def test_a_repository_comes_from_the_local_cache_while_the_network_is_off(bench: Bench, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--somebody--tiny"
    stored_in_int8(bench.model, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    start(
        bench.namespace,
        "offline",
        source={"huggingFace": {"repository": "somebody/tiny"}},
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="1",
    )
    bench.namespace.wait_ready("offline", START_SECONDS)
    await bench.run("from-the-hub", "offline")
    job = await bench.reached("from-the-hub")
    assert job.status.phase is Phase.SUCCEEDED
    parameters = present(job.status.parameters)
    assert parameters.model_revision == COMMIT
    # Nobody has named it: its configuration has, before the library was hidden.
    assert parameters.quantization == {"unet": "int8"}


async def test_a_model_comes_from_s3(bench: Bench, tmp_path: Path) -> None:
    model = stored_in_int8(bench.model, tmp_path / "model")
    with closing(bench.namespace.cluster.store.client()) as client:
        for file in (file for file in model.rglob("*") if file.is_file()):
            name = file.relative_to(model).as_posix()
            client.upload_file(str(file), installation.BUCKET, f"models/tiny/{name}")
    uri = f"s3://{installation.BUCKET}/models/tiny"
    cache = tmp_path / "cache"
    start(bench.namespace, "from-s3", source={"s3": {"uri": uri}}, KUBEDIFFUSION_CACHE_DIR=str(cache))
    bench.namespace.wait_ready("from-s3", START_SECONDS)
    await bench.run("made-from-s3", "from-s3")
    job = await bench.reached("made-from-s3")
    assert job.status.phase is Phase.SUCCEEDED
    assert present(job.status.parameters).quantization == {"unet": "int8"}
    left = sorted(cache.iterdir())
    assert [folder.name.startswith(".partial") for folder in left] == [False]


async def test_a_checkpoint_and_a_component_come_from_s3_and_a_volumes_folder(bench: Bench, tmp_path: Path) -> None:
    pipeline: Any = diffusers.StableDiffusionPipeline
    file = save_checkpoint(pipeline.from_pretrained(str(bench.model)), tmp_path / "painter.safetensors")
    with closing(bench.namespace.cluster.store.client()) as client:
        client.upload_file(str(file), installation.BUCKET, "checkpoints/old/painter.safetensors")
        client.put_object(Bucket=installation.BUCKET, Key="checkpoints/unrelated.ckpt", Body=b"\x80")
        for part in (bench.model / "vae").iterdir():
            client.upload_file(str(part), installation.BUCKET, f"vaes/one/{part.name}")
    start(
        bench.namespace,
        "put-together",
        source={
            "s3": {"uri": f"s3://{installation.BUCKET}/checkpoints"},
            "singleFile": "old/painter.safetensors",
            "configFrom": {"persistentVolumeClaim": {"claimName": "configs"}},
        },
        components=[{"name": "vae", "source": {"s3": {"uri": f"s3://{installation.BUCKET}/vaes"}, "subfolder": "one"}}],
        KUBEDIFFUSION_CACHE_DIR=str(tmp_path / "cache"),
        KUBEDIFFUSION_CLAIM_PATHS=json.dumps({"configs": str(bench.model)}),
    )
    bench.namespace.wait_ready("put-together", START_SECONDS)
    await bench.run("made-of-parts", "put-together")
    job = await bench.reached("made-of-parts")
    assert job.status.phase is Phase.SUCCEEDED
    revision = present(present(job.status.parameters).model_revision)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\+config@[0-9a-f]{12}\+vae@[0-9a-f]{12}", revision)
    # What nobody names is not fetched.
    assert not list((tmp_path / "cache").rglob("*.ckpt"))


def test_a_model_that_is_not_there_ends_the_worker_with_the_reason(bench: Bench, tmp_path: Path) -> None:
    start(bench.namespace, "lost", tmp_path / "nowhere")
    status = bench.namespace.wait_phase("lost", "Failed", START_SECONDS)
    end = status["containerStatuses"][0]["state"]["terminated"]
    assert end["exitCode"] == BAD_MODEL_EXIT_CODE
    assert end["message"] == f"the model folder {tmp_path / 'nowhere'} does not exist on the worker"
