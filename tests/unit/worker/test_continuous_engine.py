"""The engine with slots gives the pictures that the pipeline's own call gives, whoever else is in the batch.

On the embedded model against diffusers, scheduler by scheduler; the rest on tiny real pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kubediffusion.resources.conditions import EngineReason
from kubediffusion.resources.failures import JobFailure
from kubediffusion.worker import testing
from kubediffusion.worker.engine import ImageOutput, ImageRequest
from kubediffusion.worker.engine.arrangement import sizes_up_to
from kubediffusion.worker.execution.build import load_engine
from kubediffusion.worker.execution.continuous import NAME, ContinuousEngine
from kubediffusion.worker.execution.generic import PipelineEngine
from unit.worker.continuous_engines import load, pictures, run
from unit.worker.worker_builders import image_request, levels_apart, settings

EMBEDDED = Path(__file__).parents[3] / "models" / "kubediffusion-emoji"

EULER, HEUN = "EulerDiscreteScheduler", "HeunDiscreteScheduler"

SCHEDULERS = ["DDIMScheduler", EULER, "DPMSolverMultistepScheduler", "PNDMScheduler"]

PRIORITIES = {0: 1, 1: 1, 2: 0, 3: 1, 4: 2}

# diffusers asks NumPy 2 for arrays the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


@pytest.fixture(scope="session")
def embedded() -> ContinuousEngine:
    return load(EMBEDDED)


@pytest.fixture(scope="session")
def tiny_xl(folders: Callable[[str], Path]) -> ContinuousEngine:
    return load(folders("stable_diffusion_xl"))


@pytest.fixture(params=["tiny", "tiny_xl"])
def either(request: pytest.FixtureRequest) -> ContinuousEngine:
    """An engine of each family."""
    return request.getfixturevalue(request.param)


def load_like(engine: ContinuousEngine, images: int) -> ContinuousEngine:
    """An engine of the same pipeline with other slots."""
    return ContinuousEngine(engine.pipeline, engine.info, engine.family, sizes_up_to(images, prepared=False))


def by_diffusers(engine: ContinuousEngine, request: ImageRequest) -> ImageOutput:
    """The same image by the pipeline's own call."""
    return pictures(engine.whole_calls, request)[request.id.index]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_picture_is_what_diffusers_makes(embedded: ContinuousEngine, scheduler: str | None) -> None:
    request = image_request(3, "a cat on the moon", "a dog", steps=5, scheduler=scheduler)
    made = pictures(embedded, request)[3]
    expected = by_diffusers(embedded, request)
    assert made.engine == NAME
    assert (made.scheduler, made.width, made.height) == (expected.scheduler, expected.width, expected.height)
    assert len(set(made.rgb)) > 10
    assert levels_apart(made, expected) <= 1


def test_loading_tells_where_it_stands(folders: Callable[[str], Path]) -> None:
    told: list[tuple[EngineReason, str]] = []
    load_engine(settings(folders("stable_diffusion")), lambda *stage: told.append(stage))
    assert told == [
        (EngineReason.FETCHING_MODEL, "the model's files come from a folder"),
        (EngineReason.LOADING_WEIGHTS, "the weights go to the CPU"),
        (EngineReason.WARMING_UP, "the weights are loaded; the first image is made"),
    ]


def test_one_batch_mixes_steps_guidance_schedulers_and_entries(either: ContinuousEngine) -> None:
    first = image_request(0, "cat", steps=9, scheduler=EULER)
    second = image_request(1, "dog", "bird", steps=5, guidance=3.0)
    third = image_request(2, "fish", None, steps=12, guidance=20.0, scheduler="DPMSolverMultistepScheduler")
    late = image_request(3, "horse", "", steps=4, guidance=12.0, scheduler=HEUN)
    made = pictures(either, first, second, joining={2: (third,), 7: (late,)})
    for request in (first, second, third, late):
        assert levels_apart(made[request.id.index], by_diffusers(either, request)) <= 1


@pytest.mark.parametrize("scheduler", [None, EULER, "DPMSolverMultistepScheduler", HEUN, "LMSDiscreteScheduler"])
def test_both_families_run_with_every_scheduler(either: ContinuousEngine, scheduler: str | None) -> None:
    requests = [
        image_request(0, "cat", "dog", steps=6, scheduler=scheduler),
        image_request(1, "bird", None, steps=5, scheduler=scheduler),
        image_request(2, "fish", "", steps=4, guidance=2.0, scheduler=scheduler),
    ]
    together = pictures(either, *requests)
    for request in requests:
        assert levels_apart(together[request.id.index], by_diffusers(either, request)) <= 1
        assert together[request.id.index].engine == NAME


def test_without_guidance_the_negative_prompt_is_not_computed(either: ContinuousEngine) -> None:
    request = image_request(0, "cat", guidance=1.0, steps=4, width=48, height=96)
    assert levels_apart(pictures(either, request)[0], by_diffusers(either, request)) <= 1
    assert either.plan(request).key != either.plan(image_request(0, width=48, height=96)).key


# The tiny pipeline does not say that DDIM must not clip, and it does by default.
@pytest.mark.parametrize("scheduler", ["EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler", "DDIMScheduler"])
def test_what_has_no_table_runs_by_the_pipelines_call(tiny: ContinuousEngine, scheduler: str) -> None:
    request = image_request(0, scheduler=scheduler)
    assert not tiny.plan(request).joins
    made = pictures(tiny, request)[0]
    assert (made.engine, made.scheduler) == ("diffusers", scheduler)


def test_what_does_not_fit_is_refused_as_the_pipelines_call_refuses_it(tiny: ContinuousEngine) -> None:
    failure = run(tiny, image_request(scheduler="FlowMatchEulerDiscreteScheduler")).outcomes[0]
    assert isinstance(failure, JobFailure)
    assert "DDIMScheduler" in failure.message
    assert run(tiny, image_request(steps=2000, scheduler="DDIMScheduler")).failure(0).code == "PipelineFailed"


def test_other_pipelines_get_the_other_engine(folders: Callable[[str], Path]) -> None:
    made = load_engine(settings(folders("latent_consistency")))
    assert isinstance(made, PipelineEngine)
    assert made.info.name == "diffusers"


def test_plans_tell_who_may_share_a_batch(tiny: ContinuousEngine) -> None:
    def plan(**shape: Any) -> Any:
        return tiny.plan(image_request(**shape))

    assert plan(steps=5).key == plan(steps=9, guidance=2.0, scheduler=EULER).key
    assert plan().key == plan(width=testing.SIZE).key == plan(width=testing.SIZE, height=testing.SIZE).key
    assert len({plan().key, plan(width=128).key, plan(guidance=1.0).key, plan(deterministic=True).key}) == 4
    # PNDM, the tiny pipeline's own, calls the model once more, Heun almost twice.
    assert [plan(steps=5).calls, plan(steps=5, scheduler=EULER).calls] == [6, 5]
    assert plan(steps=5, scheduler=HEUN).calls == 9


def test_progress_reaches_the_end_for_each_image(tiny: ContinuousEngine) -> None:
    seen = run(tiny, image_request(0, steps=4), image_request(1, steps=6, scheduler=HEUN))
    for index, steps in ((0, 4), (1, 6)):
        assert seen.steps[index] == sorted(seen.steps[index])
        assert seen.steps[index][-1] == steps


def test_an_image_that_joins_enters_at_the_next_step_and_others_do_not_notice(tiny: ContinuousEngine) -> None:
    alone = pictures(tiny, image_request(0, steps=8))[0]
    seen = run(tiny, image_request(0, steps=8), joining={3: (image_request(1, steps=3), image_request(2, steps=4))})
    assert [load.images for load in seen.loads] == [1] * 3 + [3] * 4 + [2] + [1]
    # On the CPU no slot is empty.
    assert [load.size for load in seen.loads] == [load.images for load in seen.loads]
    assert levels_apart(seen.outcomes[0], alone) <= 1


def test_images_move_when_a_prepared_size_is_left_and_nobody_notices(folders: Callable[[str], Path]) -> None:
    loaded = load(folders("stable_diffusion"))
    made = ContinuousEngine(loaded.pipeline, loaded.info, loaded.family, sizes_up_to(4, prepared=True))
    requests = [image_request(index, "x", steps=steps, scheduler=EULER) for index, steps in enumerate((3, 5, 7, 9))]
    seen = run(made, requests[0], joining={1: tuple(requests[1:])})
    # Who stays longest entered the last slot, and moves to the first.
    assert [load.size for load in seen.loads] == [1, 4, 4, 4, 4, 4, 2, 2, 1, 1]
    for request in requests:
        assert levels_apart(seen.outcomes[request.id.index], by_diffusers(made, request)) <= 1


def test_an_image_leaves_when_it_is_done_and_makes_room_before(tiny: ContinuousEngine) -> None:
    requests = [image_request(index, steps=3 + index, scheduler=EULER) for index in range(4)]
    seen = run(tiny, *requests)
    assert list(seen.outcomes) == [0, 1, 2, 3]
    # Room is asked for ahead: the slot of an image counts that has four steps left or fewer. Who gets it may begin only
    # when they are over, and so has fewer calls to make until the last image of the batch is done.
    assert seen.offers == [(0, 5), (3, 1), (4, 0), (4, 0), (4, 0), (4, 0)]


def test_who_comes_next_is_made_ready_while_the_last_steps_run(tiny: ContinuousEngine) -> None:
    requests = [image_request(index, steps=4, scheduler=EULER) for index in range(4)]
    later = tuple(image_request(4 + index, f"later {index}", steps=4, scheduler=EULER) for index in range(3))
    calls: list[str] = []
    parts = {"encode": tiny.pipeline.text_encoder, "step": tiny.pipeline.unet}
    hooks = [part.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, part in parts.items()]
    try:
        seen = run(tiny, *requests, joining={2: later})
    finally:
        for hook in hooks:
            hook.remove()
    # Their prompts are encoded while the first batch's last step is still to come.
    assert calls[calls.index("step") :] == [*["step"] * 3, *["encode"] * 3, *["step"] * 5]
    # All of the second batch begin when the first has gone.
    assert [load.images for load in seen.loads] == [4, 4, 4, 4, 3, 3, 3, 3]
    assert sorted(seen.outcomes) == list(range(7))


def test_an_engine_that_knows_its_steps_waits_for_a_full_batch_of_the_next_size(
    folders: Callable[[str], Path],
) -> None:
    # One that has measured nothing yet.
    engine = load(folders("stable_diffusion"))
    key: Any = engine.plan(image_request(0)).key
    with torch.inference_mode():
        times = engine.prepared_batches.of(key).times
    waiting = tuple(image_request(index, steps=6, scheduler=EULER) for index in range(3))
    for size, seconds in ((1, 0.006), (2, 0.010), (3, 0.018), (4, 0.019)):
        for _ in range(5):
            times.note(size, seconds)
    seen = run(engine, *waiting[:2], joining={1: waiting[2:]})
    late = run(engine, *waiting[:2], joining={1: waiting[2:]}, due={2: 4})
    # Three would do less a second than two: the third waits until a slot of theirs is free.
    assert [load.images for load in seen.loads] == [2] * 6 + [1] * 6
    # Or until it has waited for long enough.
    assert [load.images for load in late.loads] == [2] * 4 + [3] * 2 + [1] * 4
    assert sorted(seen.outcomes) == sorted(late.outcomes) == [0, 1, 2]


def test_a_cancelled_image_frees_its_slot_and_leaves_its_neighbours_as_they_are(tiny: ContinuousEngine) -> None:
    requests = [image_request(index, steps=6) for index in range(3)]
    undisturbed = pictures(tiny, *requests)
    seen = run(tiny, *requests, unwanted={1: 2})
    assert sorted(seen.outcomes) == [0, 2]
    assert len(seen.steps[1]) == 2
    assert seen.loads[2].images == 2
    for index in (0, 2):
        assert levels_apart(seen.outcomes[index], undisturbed[index]) <= 1


def test_neighbours_of_the_same_slot_and_size_do_not_change_a_bit(tiny: ContinuousEngine) -> None:
    beside = pictures(tiny, image_request(0), image_request(1, "x"), image_request(2, "y"))
    others = pictures(tiny, image_request(0), image_request(3, "z", guidance=2.0), image_request(4, "q"))
    assert beside[0] == others[0]


def test_a_batch_that_is_interrupted_gives_the_same_bytes(either: ContinuousEngine) -> None:
    requests = [image_request(index, steps=6, scheduler=EULER) for index in range(2)]
    urgent = (
        image_request(2, "dog", steps=3, scheduler=EULER, width=96),
        image_request(3, steps=2, scheduler=EULER, width=96),
    )
    undisturbed = pictures(either, *requests)
    seen = run(either, *requests, urgent={2: urgent})
    assert list(seen.outcomes) == [3, 2, 0, 1]
    assert [load.images for load in seen.loads] == [2, 2, *[2, 2, 1], 2, 2, 2, 2]
    for index in (0, 1):
        assert seen.outcomes[index] == undisturbed[index]
    for request in urgent:
        assert levels_apart(seen.outcomes[request.id.index], by_diffusers(either, request)) <= 1


def test_an_image_that_is_parked_gives_the_same_bytes(either: ContinuousEngine) -> None:
    alone = load_like(either, images=1)
    request = image_request(0, steps=6, scheduler=HEUN)
    urgent = (image_request(1, "dog", steps=3, scheduler=EULER), image_request(2, steps=2, guidance=3.0))
    seen = run(alone, request, joining={2: urgent[:1], 8: urgent[1:]}, priorities={1: 1, 2: 1})
    assert list(seen.outcomes) == [1, 2, 0]
    # Its latents and past outputs went to the host's memory and back, twice; no step is made twice.
    assert seen.steps[0] == run(alone, request).steps[0]
    assert seen.outcomes[0] == pictures(alone, request)[0]
    for other in urgent:
        assert seen.outcomes[other.id.index] == pictures(alone, other)[other.id.index]


def test_an_image_takes_the_slot_of_the_least_urgent_and_its_neighbours_do_not_notice(tiny: ContinuousEngine) -> None:
    requests = [image_request(index, steps=8, scheduler=EULER) for index in range(4)]
    undisturbed = pictures(tiny, *requests)
    seen = run(
        tiny, *requests, joining={2: (image_request(4, "dog", steps=6, scheduler=EULER),)}, priorities=PRIORITIES
    )
    # The third waits until another is done: its slot is the urgent one's.
    assert list(seen.outcomes) == [0, 1, 3, 4, 2]
    # It is made ready while the third step runs.
    assert [load.images for load in seen.loads] == [4] * 8 + [2, *[1] * 4]
    for index in (0, 1, 3):
        assert seen.outcomes[index] == undisturbed[index]
    assert levels_apart(seen.outcomes[2], undisturbed[2]) <= 1


def test_a_parked_image_can_be_cancelled(tiny: ContinuousEngine) -> None:
    requests = [image_request(index, steps=8, scheduler=EULER) for index in range(4)]
    urgent = (image_request(4, "dog", steps=6, scheduler=EULER),)
    seen = run(tiny, *requests, joining={2: urgent}, priorities=PRIORITIES, unwanted={2: 3})
    assert sorted(seen.outcomes) == [0, 1, 3, 4]


def test_what_interrupts_and_fails_leaves_the_batch_as_it_is(folders: Callable[[str], Path]) -> None:
    made = load(folders("stable_diffusion"))
    # No machine has the memory to prepare a batch of the second.
    request, urgent = image_request(0, steps=6), image_request(1, steps=3, width=2**43)
    undisturbed = pictures(made, request)[0]
    seen = run(made, request, urgent={2: (urgent,)})
    assert seen.outcomes[0] == undisturbed
    assert seen.failure(1).code == "OutOfMemory"


def test_a_deterministic_image_has_the_same_bytes_on_every_attempt(tiny: ContinuousEngine) -> None:
    request = image_request(7, deterministic=True, steps=5)
    plan = tiny.plan(request)
    assert not plan.joins
    first = pictures(tiny, request)[7]
    pictures(tiny, *(image_request(index, "x", steps=4) for index in range(4)))
    assert pictures(tiny, request)[7] == first
    assert levels_apart(first, pictures(tiny, image_request(7, steps=5), image_request(8))[7]) <= 1


def test_images_wait_in_order_when_more_come_than_fit(tiny: ContinuousEngine) -> None:
    requests = [image_request(index, steps=2, scheduler=EULER) for index in range(7)]
    seen = run(tiny, *requests[:4], joining={1: tuple(requests[4:])})
    assert list(seen.outcomes) == list(range(7))
    assert max(load.images for load in seen.loads) == 4


def test_a_flagged_image_is_blank_and_marked(tmp_path: Path) -> None:
    folder = testing.save_stable_diffusion(tmp_path / "safe", safety_checker=True)
    made = load(folder, safetyChecker=True)
    checker = made.pipeline.safety_checker.requires_grad_(False)
    # Every picture is closer to the forbidden concepts than this.
    checker.concept_embeds_weights.fill_(-2.0)
    flagged = pictures(made, image_request())[0]
    assert (flagged.flagged, set(flagged.rgb)) == (True, {0})
    checker.concept_embeds_weights.fill_(2.0)
    checker.special_care_embeds_weights.fill_(2.0)
    assert not pictures(made, image_request())[0].flagged
