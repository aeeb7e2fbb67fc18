"""What fails in the engine with slots fails alone: memory, prompts, steps, pixels, the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.testing import present
from kubediffusion.worker.engine import EngineLostError, ImageOutput
from kubediffusion.worker.execution.continuous import ContinuousEngine
from unit.worker.continuous_engines import batch_key, load, pictures, run
from unit.worker.worker_builders import code_of, image_request, levels_apart

EULER = "EulerDiscreteScheduler"

# diffusers asks NumPy 2 for arrays the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


class Broken(Exception):  # noqa: N818 - a stand-in
    """What a sabotaged pipeline raises."""


def out_of_memory_above(engine: ContinuousEngine, monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """Have the denoiser run out of memory when a batch has more images."""
    unet = engine.pipeline.unet
    forward = unet.forward

    def limited(sample: Any, *args: Any, **more: Any) -> Any:
        if len(sample) > 2 * images:
            raise torch.OutOfMemoryError("too much")
        return forward(sample, *args, **more)

    monkeypatch.setattr(unet, "forward", limited)


def test_a_batch_that_does_not_fit_is_split_and_nobody_loses_a_step(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(folders("stable_diffusion"))
    requests = [image_request(index, steps=5, scheduler=EULER) for index in range(4)]
    whole = pictures(made, *requests)
    out_of_memory_above(made, monkeypatch, 2)
    seen = run(made, requests[0], joining={2: tuple(requests[1:])})
    for request in requests:
        assert levels_apart(seen.outcomes[request.id.index], whole[request.id.index]) <= 1
        assert len(seen.steps[request.id.index]) == 5
    assert {load.limit for load in seen.loads[2:]} == {2}
    # The limit stays: the next batch does not try again.
    assert {load.limit for load in run(made, *requests[:2]).loads} == {2}


def test_an_image_that_cannot_be_decoded_beside_others_is_decoded_when_there_are_fewer(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(folders("stable_diffusion"))
    requests = [image_request(index, steps=2 + index, scheduler=EULER) for index in range(4)]
    whole = pictures(made, *requests)
    decode = made.pipeline.vae.decode
    refused: list[int] = []

    def short_of_memory(latents: Any, **more: Any) -> Any:
        if not refused:
            refused.append(1)
            raise torch.OutOfMemoryError("too much")
        return decode(latents, **more)

    monkeypatch.setattr(made.pipeline.vae, "decode", short_of_memory)
    seen = run(made, *requests)
    assert [load.limit for load in seen.loads[:3]] == [4, 4, 2]
    for request in requests:
        assert levels_apart(seen.outcomes[request.id.index], whole[request.id.index]) <= 1


def test_an_image_that_does_not_fit_alone_fails(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(folders("stable_diffusion"))
    out_of_memory_above(made, monkeypatch, 0)
    outcomes = run(made, image_request(0), image_request(1)).outcomes
    assert [code_of(outcome) for outcome in outcomes.values()] == ["OutOfMemory", "OutOfMemory"]


def test_a_prompt_that_makes_the_encoder_raise_fails_alone(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(folders("stable_diffusion"))
    encoder, refused = made.pipeline.text_encoder, made.pipeline.tokenizer("q").input_ids[1]
    encode = encoder.forward

    def picky(tokens: torch.Tensor, *args: Any, **more: Any) -> Any:
        if (tokens == refused).any():
            raise Broken("no q please")
        return encode(tokens, *args, **more)

    monkeypatch.setattr(encoder, "forward", picky)
    outcomes = run(made, image_request(0), image_request(1, "q"), image_request(2)).outcomes
    assert outcomes[1] == JobFailure(ErrorCode.PIPELINE_FAILED, "Broken: no q please")
    assert isinstance(outcomes[0], ImageOutput)
    assert isinstance(outcomes[2], ImageOutput)


def test_a_step_that_raises_is_tried_again_for_each_alone(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(folders("stable_diffusion"))
    forward = made.pipeline.unet.forward

    def dislikes_company(sample: Any, *args: Any, **more: Any) -> Any:
        if len(sample) > 2:
            raise Broken("not together")
        return forward(sample, *args, **more)

    monkeypatch.setattr(made.pipeline.unet, "forward", dislikes_company)
    made_alone = pictures(made, image_request(0), image_request(1))
    assert {picture.engine for picture in made_alone.values()} == {"diffusers"}


def test_a_deterministic_image_whose_step_raised_once_is_run_again_in_the_same_way(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(folders("stable_diffusion"))
    request = image_request(0, deterministic=True)
    expected = pictures(made, request)[0]
    forward = made.pipeline.unet.forward
    broken: list[bool] = []

    def stumbles_once(*args: Any, **more: Any) -> Any:
        if not broken:
            broken.append(True)
            raise Broken("once")
        return forward(*args, **more)

    monkeypatch.setattr(made.pipeline.unet, "forward", stumbles_once)
    again = pictures(made, request)[0]
    assert broken
    assert (again.rgb, again.engine) == (expected.rgb, expected.engine)


def test_pixels_that_are_not_numbers_fail_their_image_alone(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(folders("stable_diffusion"))
    decode = made.pipeline.vae.decode
    calls: list[int] = []

    def first_broken(latents: Any, **more: Any) -> Any:
        (image,) = decode(latents, **more)
        calls.append(1)
        return (image * float("nan") if len(calls) == 1 else image,)

    monkeypatch.setattr(made.pipeline.vae, "decode", first_broken)
    outcomes = run(made, image_request(0), image_request(1)).outcomes
    assert code_of(outcomes[0]) == "InvalidImage"
    assert isinstance(outcomes[1], ImageOutput)


def test_a_slot_recovers_from_an_image_that_is_not_numbers(tiny: ContinuousEngine) -> None:
    before = pictures(tiny, image_request(0))[0]
    prepared = tiny.prepared_batches.of(batch_key(tiny, image_request()))
    with torch.inference_mode():
        prepared.batch.fill(float("nan"))
    assert pictures(tiny, image_request(0))[0] == before


def test_float16_that_overflows_in_the_vae_is_decoded_in_float32(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(folders("stable_diffusion"), torchDtype="float16")
    vae = made.pipeline.vae
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    decode = vae.decode
    key = batch_key(made, image_request())

    def overflows(latents: torch.Tensor, **more: Any) -> Any:
        assert latents.dtype == torch.float16
        return (decode(latents, **more)[0] + float("inf"),)

    with torch.inference_mode():
        usual, _ = made.decoder.finish(made.decoder.begin(latents, key))
        monkeypatch.setattr(vae, "decode", overflows)
        decoding = made.decoder.begin(latents, key)
        assert not decoding.finite
        monkeypatch.undo()
        pixels, _ = made.decoder.finish(decoding)
        assert np.abs(present(pixels).astype(int) - present(usual).astype(int)).max() <= 2
        assert made.decoder.finish(made.decoder.begin(latents * float("nan"), key)) == (None, False)


def test_a_lost_device_ends_the_engine(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = load(folders("stable_diffusion"))

    def illegal(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(made.pipeline.unet, "forward", illegal)
    # This machine has no CUDA device that could be lost; test_pipeline_engine has the check find out that one is.
    monkeypatch.setattr("kubediffusion.worker.execution.local_executor.check_device", lambda _, error: lost(error))
    with pytest.raises(EngineLostError):
        run(made, image_request())


def lost(error: Exception) -> None:
    raise EngineLostError("the CUDA device is lost") from error
