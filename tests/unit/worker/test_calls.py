"""How pipelines are called, read off signatures that differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from diffusers.utils.outputs import BaseOutput

from kubediffusion.worker.engine import BadModelError, GuidanceKind
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


class TrueGuidanceAlone:
    def __call__(self, prompt: Any = None, negative_prompt: Any = None, true_cfg_scale: float = 1.0) -> None: ...


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


def test_a_guidance_scale_is_given_by_the_only_name_that_there_is() -> None:
    plan = CallPlan.of(TrueGuidanceAlone)
    assert plan.arguments((image_request(negative="x"),))["true_cfg_scale"] == 7.5
    ignored = plan.ignored(image_request(negative="x"), GuidanceKind.CFG)
    assert not [text for text in ignored if text.startswith(("guidanceScale", "negativePrompt"))]
    assert "only with negativePrompt" in plan.ignored(image_request(), GuidanceKind.NONE)[-1]


@dataclass
class Sound(BaseOutput):
    audios: Any


class MakesSound:
    def __call__(self, prompt: Any) -> Any:
        return Sound(audios=prompt)


def test_a_class_that_makes_no_images_is_refused_by_what_its_call_names() -> None:
    with pytest.raises(BadModelError, match="makes no images, but audios"):
        CallPlan.of(MakesSound)
