"""A worker's Pod runs the jobs that are bound to it, against a real API server and a real S3 server."""

from __future__ import annotations

import asyncio
import io

from botocore.exceptions import ClientError
from PIL import Image as Pillow

from integration.worker.bench_of_workers import LONG, MODEL, Bench
from kubediffusion.local.installation import BUCKET, PREFIX
from kubediffusion.local.testing import eventually
from kubediffusion.resources.apiserver.resource import EventType
from kubediffusion.resources.conditions import ConditionStatus, find_condition
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.image_keys import preview_key
from kubediffusion.resources.meta import PREVIEW_REQUESTED_AT_ANNOTATION
from kubediffusion.resources.testing import present
from kubediffusion.worker.images import read_recipe


async def history(bench: Bench, name: str, since: GenerationJob) -> list[GenerationJob]:
    """Return every state that the API server wrote of a job after ``since``, up to the terminal one."""
    states = []
    async for event in bench.client.generation_jobs.watch(
        bench.namespace.name, since.metadata.resource_version, field_selector=f"metadata.name={name}"
    ):
        if event.type is EventType.MODIFIED:
            state = present(event.item)
            states.append(state)
            if state.status.completion_time is not None:
                return states
    return states


async def test_a_job_becomes_images_in_storage(bench: Bench, warm: str) -> None:
    await bench.run("images", warm, numImages=3, seed=7)
    job = await bench.reached("images")
    status = job.status
    assert status.phase is Phase.SUCCEEDED, status.error
    bench.check_images(job)
    assert [image.seed for image in status.images] == [7, 8, 9]
    assert present(find_condition(status.conditions, "Complete")).status is ConditionStatus.TRUE
    assert present(status.progress).summary == "2/2"
    assert {status.observed_generation, *(said.observed_generation for said in status.conditions)} == {None}
    assert present(status.queued_at) <= present(status.start_time) <= present(status.completion_time)
    until_completed = (present(status.completion_time) - present(status.queued_at)).total_seconds()
    assert 0 < present(present(status.timings).inference) < until_completed
    parameters = present(status.parameters)
    assert (parameters.pipeline, parameters.engine) == ("StableDiffusionPipeline", "continuous")
    assert (parameters.scheduler, parameters.width, parameters.height) == ("PNDMScheduler", 64, 64)
    assert present(parameters.model_revision).startswith("sha256:")
    assert "torch" in present(parameters.versions)
    prompt, recipe = read_recipe(bench.stored(status.images[1].uri))
    assert (prompt, recipe["seed"], recipe["model"]) == ("a cat", 8, MODEL)


async def test_a_short_job_is_written_once(bench: Bench, warm: str) -> None:
    bound = await bench.run("short", warm)
    states = await history(bench, "short", bound)
    assert [state.status.phase for state in states] == [Phase.SUCCEEDED]


async def test_a_long_job_tells_its_progress_once_a_second(bench: Bench, obedient: str) -> None:
    bound = await bench.run("long", obedient, numInferenceSteps=LONG)
    states = await history(bench, "long", bound)
    running = [state.status for state in states if state.status.phase is Phase.RUNNING]
    assert states[-1].status.phase is Phase.SUCCEEDED
    steps = [present(status.progress).step for status in running]
    assert steps == sorted(set(steps))
    seconds = (present(states[-1].status.completion_time) - present(running[0].start_time)).total_seconds()
    assert seconds / 2 - 1 <= len(running) <= seconds


async def test_jobs_that_fit_run_together(bench: Bench, warm: str) -> None:
    before = bench.metric(warm, "kubediffusion_worker_batch_images_count")
    images = bench.metric(warm, "kubediffusion_worker_batch_images_sum")
    # While this one runs, the others gather.
    await bench.run("first", warm, numInferenceSteps=300)
    jobs = [await bench.run(f"mate-{n}", warm, seed=n, prompt=f"cat {n}", numInferenceSteps=50) for n in range(4)]
    done = [await bench.reached(job.name) for job in jobs]
    assert [job.status.phase for job in done] == [Phase.SUCCEEDED] * 4
    assert len({job.status.images[0].sha256 for job in done}) == 4
    steps = bench.metric(warm, "kubediffusion_worker_batch_images_count") - before
    assert bench.metric(warm, "kubediffusion_worker_batch_images_sum") - images > steps


async def test_a_job_joins_the_batch_that_runs_and_leaves_before_it_ends(bench: Bench, warm: str) -> None:
    await bench.run("marathon", warm, numInferenceSteps=LONG)
    await bench.reached("marathon", Phase.RUNNING)
    await bench.run("sprint", warm, scheduler="EulerDiscreteScheduler", numImages=2)
    assert (await bench.reached("sprint")).status.phase is Phase.SUCCEEDED
    marathon = await bench.get("marathon")
    assert marathon.status.phase is Phase.RUNNING
    await bench.client.generation_jobs.delete(bench.namespace.name, "marathon")


async def test_a_deterministic_job_gives_the_same_bytes_beside_others(bench: Bench, warm: str) -> None:
    same = {"deterministic": True, "seed": 11, "numImages": 2}
    await bench.run("alone", warm, **same)
    alone = await bench.reached("alone")
    await bench.run("other-1", warm)
    await bench.run("beside", warm, **same)
    await bench.run("other-2", warm)
    beside = await bench.reached("beside")
    assert [image.sha256 for image in beside.status.images] == [image.sha256 for image in alone.status.images]


async def test_an_accelerated_job_says_so_in_its_recipe_and_in_its_image(bench: Bench, warm: str) -> None:
    wish = {"guidanceInterval": {"start": 0.0, "stop": 0.5}, "featureCaching": {"interval": 2}}
    same = {"numInferenceSteps": 8, "seed": 5, "deterministic": True}
    await bench.run("usual", warm, **same)
    await bench.run("fast", warm, **same, acceleration=wish)
    usual, fast = await bench.reached("usual"), await bench.reached("fast")
    assert fast.status.phase is Phase.SUCCEEDED, fast.status.error
    assert present(fast.status.parameters).to_wire()["acceleration"] == wish
    recipes = [read_recipe(bench.stored(job.status.images[0].uri))[1] for job in (usual, fast)]
    assert [recipe.get("acceleration") for recipe in recipes] == [None, wish]
    assert usual.status.images[0].sha256 != fast.status.images[0].sha256


async def test_what_the_pipeline_refuses_fails_that_job_alone(bench: Bench, warm: str) -> None:
    await bench.run("misfit", warm, scheduler="FlowMatchEulerDiscreteScheduler")
    await bench.run("neighbour", warm)
    misfit, neighbour = await bench.reached("misfit"), await bench.reached("neighbour")
    assert present(misfit.status.error).code == "PipelineFailed"
    assert "PNDMScheduler" in present(misfit.status.error).message
    assert present(find_condition(misfit.status.conditions, "Failed")).reason == "PipelineFailed"
    assert neighbour.status.phase is Phase.SUCCEEDED


async def test_a_prompt_that_was_cut_is_told(bench: Bench, warm: str) -> None:
    await bench.run("wordy", warm, prompt="a very long sentence about a cat")
    job = await bench.reached("wordy")
    assert len(job.status.warnings) == 1
    assert job.status.warnings[0].startswith("prompt is too long for the text encoder: the last 12 tokens were cut")


async def test_a_cancelled_job_stops_at_the_next_step(bench: Bench, warm: str) -> None:
    await bench.run("doomed", warm, numInferenceSteps=LONG)
    await bench.reached("doomed", Phase.RUNNING)
    steps = bench.metric(warm, "kubediffusion_worker_steps_total")
    await bench.patch("doomed", {"spec": {"cancel": True}})
    # The next job shows that the engine is free.
    await bench.run("next", warm)
    assert (await bench.reached("next")).status.phase is Phase.SUCCEEDED
    doomed = await bench.get("doomed")
    assert (doomed.status.phase, doomed.status.images) == (Phase.RUNNING, ())
    assert 0 < bench.metric(warm, "kubediffusion_worker_steps_total") - steps < LONG / 2
    cancelled = await bench.patch("doomed", {"status": {"phase": "Cancelled"}}, "status")
    assert cancelled.status.phase is Phase.CANCELLED


async def test_a_deleted_job_frees_the_worker(bench: Bench, warm: str) -> None:
    await bench.run("deleted", warm, numInferenceSteps=LONG)
    await bench.reached("deleted", Phase.RUNNING)
    dropped = bench.metric(warm, 'kubediffusion_worker_jobs_total{outcome="dropped"}')
    await bench.client.generation_jobs.delete(bench.namespace.name, "deleted")

    async def told() -> bool:
        return bench.metric(warm, 'kubediffusion_worker_jobs_total{outcome="dropped"}') == dropped + 1

    await eventually("the worker to drop the job", told)
    await bench.run("after", warm)
    assert (await bench.reached("after")).status.phase is Phase.SUCCEEDED


async def test_prompts_stay_out_of_the_log(bench: Bench, warm: str) -> None:
    secret = "zyxwv a very private wish of mine"
    await bench.run("private", warm, prompt=secret)
    await bench.run("private-too", warm, prompt=secret, scheduler="FlowMatchEulerDiscreteScheduler")
    await asyncio.gather(bench.reached("private"), bench.reached("private-too"))
    lines = bench.log(warm)
    assert {"private", "private-too"} <= {line.get("job") for line in lines}
    for word in secret.split():
        assert len(word) < 4 or word not in str(lines).replace("private-too", "").replace("'private'", "")


async def test_previews_are_in_storage_while_somebody_looks(bench: Bench, warm: str) -> None:
    bound = await bench.run("looked-at", warm, numInferenceSteps=LONG)
    key = preview_key(PREFIX, bench.namespace.name, bound.uid)

    def there() -> bytes | None:
        try:
            return bench.stored(f"s3://{BUCKET}/{key}")
        except ClientError:
            return None

    await bench.patch("looked-at", {"metadata": {"annotations": {PREVIEW_REQUESTED_AT_ANNOTATION: "now"}}})
    shown = await eventually("a preview", lambda: asyncio.to_thread(there))
    with Pillow.open(io.BytesIO(shown)) as picture:
        assert (picture.format, picture.width, picture.height) == ("PNG", 32, 32)
    done = await bench.reached("looked-at")
    assert done.status.phase is Phase.SUCCEEDED
    bench.check_images(done)

    async def removed() -> bool:
        return await asyncio.to_thread(there) is None

    await eventually("the preview to be removed", removed)
