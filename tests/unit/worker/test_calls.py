"""How pipelines are called, read off signatures that differ."""

from __future__ import annotations

from typing import Any

import pytest

from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.families.calls import Callback, CallPlan
from unit.worker.worker_builders import image_request


class Usual:
    def __call__(
        self,
        prompt: Any = None,
        height: Any = None,
        width: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: Any = None,
        generator: Any = None,
        callback_on_step_end: Any = None,
        max_sequence_length: int = 256,
    ) -> None: ...


class Sparse:
    def __call__(self, prompt: Any, num_inference_steps: int = 4, callback: Any = None) -> None: ...


class TrueGuidance:
    def __call__(
        self, prompt: Any = None, negative_prompt: Any = None, true_cfg_scale: float = 1.0, guidance_scale: float = 3.5
    ) -> None: ...


class NoText:
    def __call__(self, num_inference_steps: int = 50) -> None: ...


class NeedsImage:
    def __call__(self, prompt: Any, image: Any) -> None: ...


def test_a_usual_pipeline_gets_all() -> None:
    plan = CallPlan.of(Usual)
    requests = (image_request(0, "a", "x", width=64, height=128), image_request(1, "b", None, width=64, height=128))
    assert plan.arguments(requests) == {
        "prompt": ["a", "b"],
        "negative_prompt": ["x", ""],
        "num_inference_steps": 3,
        "guidance_scale": 7.5,
        "width": 64,
        "height": 128,
    }
    assert (plan.callback, plan.max_sequence_length) == (Callback.STEP_END, 256)
    assert plan.ignored(requests[0]) == []


def test_no_negative_prompt_is_left_out() -> None:
    assert "negative_prompt" not in CallPlan.of(Usual).arguments((image_request(0), image_request(1)))


def test_what_a_pipeline_does_not_take_is_told() -> None:
    plan = CallPlan.of(Sparse)
    request = image_request(negative="x", width=64)
    assert plan.arguments((request,)) == {"prompt": ["a cat"], "num_inference_steps": 3}
    assert plan.callback is Callback.LEGACY
    assert plan.ignored(request) == [
        "negativePrompt has no effect: Sparse does not take it",
        "guidanceScale has no effect: Sparse does not take it",
        "width has no effect: Sparse does not take it",
    ]


def test_a_negative_prompt_without_guidance_is_told() -> None:
    assert "guidanceScale is not above 1" in CallPlan.of(Usual).ignored(image_request(negative="x", guidance=1.0))[0]
    assert "true_cfg_scale" in CallPlan.of(TrueGuidance).ignored(image_request(negative="x"))[-1]


@pytest.mark.parametrize("pipeline", [NoText, NeedsImage])
def test_what_is_not_text_to_image_is_refused(pipeline: type) -> None:
    with pytest.raises(BadModelError, match="not a text-to-image pipeline"):
        CallPlan.of(pipeline)
