"""The command line before the whole system: operator, worker, storage and API."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from integration.system.studio import LONG, Studio
from kubediffusion.resources.generation_job import Phase

PROGRAM = Path(sys.executable).with_name("kubediffusion")


async def run(studio: Studio, folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        PROGRAM, *arguments, cwd=folder, env={"KUBEDIFFUSION_SERVER": studio.url, "LANG": "C.UTF-8"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.standin
async def test_a_prompt_becomes_files_and_a_job_is_made_again(studio: Studio, tmp_path: Path) -> None:
    options = ("--model", studio.model, "--steps", "2", "--count", "2", "--seed", "7", "--output", "json")
    code, out, err = await run(studio, tmp_path, "a fox in the snow", "-o", "fox.png", *options)
    assert (code, err) == (0, "")
    made = json.loads(out)
    job = await studio.job(made["name"])
    studio.assert_images_are_true(job)
    assert [(tmp_path / file).read_bytes() for file in made["files"]] == [
        studio.stored(image.uri) for image in job.status.images
    ]
    code, name, err = await run(studio, tmp_path, "again", job.name, "--no-wait")
    assert (code, err) == (0, "")
    again = await studio.phase(name.strip(), Phase.SUCCEEDED)
    assert again.spec.model_dump() == job.spec.model_dump()
    assert "recipe    2 of " in (await run(studio, tmp_path, "explain", again.name))[1]


@pytest.mark.standin
async def test_a_timeout_cancels_a_job_that_runs(studio: Studio, tmp_path: Path) -> None:
    options = ("--set", f"numInferenceSteps={LONG['numInferenceSteps']}", "--set", "deterministic=true", "--count", "4")
    code, _, err = await run(studio, tmp_path, "a fox", "--model", studio.model, *options, "--timeout", "2")
    assert code == 6
    name = err.split()[1]
    await studio.phase(name, Phase.CANCELLED)
