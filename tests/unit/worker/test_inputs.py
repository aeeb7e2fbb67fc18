"""What lies in storage as an input is not trusted: its hash, its size and its form are checked."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest
from PIL import Image

from kubediffusion.resources.failures import JobFailure
from kubediffusion.resources.generation_job import MAX_INPUT_PIXELS, MAX_SIZE, InputRole, JobInput
from kubediffusion.resources.pipeline_facts import PipelineDefaults, PipelineFacts
from kubediffusion.worker import inputs
from kubediffusion.worker.assignments import Assignment, Binding
from kubediffusion.worker.engine import EngineInfo, InputImage, InputImages
from kubediffusion.worker.inputs import read_input, size_of
from unit.worker.worker_builders import INFO, bound_job


def png(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


class Stream:
    """An object that is read, of a length that it claims."""

    def __init__(self, data: bytes, length: int) -> None:
        self.length = length
        self._data = io.BytesIO(data)
        self.closed = False

    def read(self, size: int) -> bytes:
        return self._data.read(size)

    def close(self) -> None:
        self.closed = True


class Storage:
    """One object."""

    def __init__(self, data: bytes, length: int | None = None) -> None:
        self.stream = Stream(data, len(data) if length is None else length)

    def uri(self, key: str) -> str:
        return f"s3://b/{key}"

    def open(self, _uri: str) -> Stream:
        return self.stream


def read(
    data: bytes, role: InputRole = InputRole.IMAGE, size: tuple[int, int] | None = None, **given: Any
) -> InputImage:
    named = JobInput(role=role, id=given.get("id", hashlib.sha256(data).hexdigest()))
    storage = Storage(data, given.get("length"))
    try:
        return read_input(storage, "key", named, size)  # type: ignore[arg-type]
    finally:
        assert storage.stream.closed


def reason(data: bytes, **given: Any) -> str:
    with pytest.raises(JobFailure) as raised:
        read(data, **given)
    assert raised.value.code == "InvalidInput"
    assert raised.value.message.startswith("the image ")
    return raised.value.message


def test_an_image_is_rgb_in_the_size_of_the_job() -> None:
    found = read(png(Image.new("RGB", (2, 2), "red")), size=(8, 4))
    assert (found.width, found.height, found.pixels) == (8, 4, b"\xff\x00\x00" * 32)
    assert read(png(Image.new("L", (2, 1), 7))).pixels == b"\x07" * 6


def test_what_is_transparent_is_white_in_an_image_and_kept_in_a_mask() -> None:
    clear = png(Image.new("RGBA", (1, 1), (0, 0, 0, 0)))
    assert read(clear).pixels == b"\xff\xff\xff"
    assert read(png(Image.new("RGBA", (1, 1), (255, 255, 255, 0))), InputRole.MASK).pixels == b"\x00"
    assert read(png(Image.new("L", (1, 1), 255)), InputRole.MASK).pixels == b"\xff"


def test_what_is_no_input_fails_its_job_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fox = png(Image.new("RGB", (2, 2)))
    assert "another hash" in reason(fox, id="0" * 64)
    assert "another hash" in reason(fox[:-1], id=hashlib.sha256(fox).hexdigest())
    assert "no PNG" in reason(b"not a picture")
    assert "no PNG" in reason(png(Image.new("RGB", (2, 2)), "JPEG"))
    assert "no PNG" in reason(fox[: len(fox) // 2])
    assert f"more than {MAX_SIZE} a side" in reason(png(Image.new("1", (MAX_SIZE + 1, 1))))
    assert f"more than {MAX_INPUT_PIXELS} in all" in reason(png(Image.new("1", (MAX_SIZE, MAX_SIZE))))
    monkeypatch.setattr(inputs, "MAX_BYTES", 10)
    assert "more than 10" in reason(fox)


def assignment(**parameters: Any) -> Assignment:
    job = bound_job(parameters=parameters)
    assert job.status.parameters is not None
    return Assignment(job=job, binding=Binding(job.uid, 1), parameters=job.status.parameters)


def test_the_size_is_the_jobs_else_the_pipelines_own() -> None:
    facts = PipelineFacts(name="p", defaults=PipelineDefaults(width=256, height=128))
    told = EngineInfo(INFO.name, INFO.pipeline, INFO.device, INFO.torch_dtype, INFO.revision, INFO.versions, facts)
    assert size_of(assignment(), told) == (256, 128)
    assert size_of(assignment(width=64, height=96), told) == (64, 96)
    assert size_of(assignment(width=64), told) == (64, 128)
    assert size_of(assignment(width=64), INFO) == (64, 64)
    assert size_of(assignment(), INFO) is None


def test_a_job_waits_for_its_inputs_and_hands_them_to_each_of_its_images() -> None:
    named = [{"role": "image", "id": "a" * 64}]
    waits = assignment(inputs=named, strength=0.5, numImages=2)
    assert waits.awaits_inputs
    assert not assignment().awaits_inputs
    ready = assignment(inputs=named, strength=0.5, numImages=2)
    ready.inputs = InputImages(InputImage("a" * 64, 1, 1, b"\x00\x00\x00"))
    assert not ready.awaits_inputs
    assert {ready.request(index).inputs for index in (0, 1)} == {ready.inputs}
    assert ready.request(0).sampling.strength == 0.5
