"""A worker loads the LoRAAdapters that its jobs name, and tells of them in its Pod."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from integration.worker.bench_of_workers import MODEL, Bench
from kubediffusion.local.testing import eventually
from kubediffusion.resources import meta
from kubediffusion.resources.adapters import AdapterReport, reports_from_json
from kubediffusion.resources.conditions import PodConditionType
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.testing import present

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


async def add(bench: Bench, name: str, file: Path, layer: str) -> None:
    """Add a LoRAAdapter of one layer, whose width is the tiny model's."""
    width = 16
    save_file({f"{layer}.lora_A.weight": torch.ones(2, width), f"{layer}.lora_B.weight": torch.ones(width, 2)}, file)
    source = {"path": str(file.parent), "file": file.name}
    body: dict[str, Any] = {
        "apiVersion": meta.API_VERSION,
        "kind": "LoRAAdapter",
        "metadata": {"name": name},
        "spec": {"model": MODEL, "source": source, "scale": 0.5},
    }
    await bench.client.lora_adapters.create(bench.namespace.name, body)


async def made(bench: Bench, name: str, worker: str, adapter: str) -> GenerationJob:
    """Run a job with an adapter, as one that binds jobs without knowing its scale."""
    job = await bench.submit(name, adapters=[{"name": adapter}])
    await bench.bind(job, worker)
    return await bench.reached(name)


async def test_a_job_is_made_with_its_adapters_which_the_pod_tells_of(bench: Bench, warm: str, tmp_path: Path) -> None:
    file = tmp_path / "good.safetensors"
    await add(bench, "good", file, LAYER)
    await add(bench, "strange", tmp_path / "strange.safetensors", "unet.no_such_layer")
    job = await made(bench, "with-an-adapter", warm, "good")
    assert job.status.phase is Phase.SUCCEEDED, job.status.error
    (applied,) = present(present(job.status.parameters).adapters)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (applied.name, applied.scale, applied.digest) == ("good", 0.5, digest)

    refused = await made(bench, "with-a-strange-one", warm, "strange")
    error = present(refused.status.error)
    assert (refused.status.phase, error.code) == (Phase.FAILED, "InvalidAdapter")
    assert "WrongBaseModel" in error.message
    absent = await made(bench, "with-none", warm, "absent")
    assert "no such LoRAAdapter" in present(absent.status.error).message

    async def told() -> dict[str, AdapterReport] | None:
        conditions = bench.namespace.get("pod", warm)["status"].get("conditions", [])
        known = [each for each in conditions if each["type"] == PodConditionType.ADAPTERS_KNOWN]
        reports = dict(reports_from_json(known[0]["message"])) if known else {}
        return reports if reports.keys() == {"good", "strange"} else None

    reports = await eventually("what the worker tells of its adapters", told)
    assert (reports["good"].digest, reports["good"].rank) == (digest, 2)
    assert reports["strange"].reason == "WrongBaseModel"
