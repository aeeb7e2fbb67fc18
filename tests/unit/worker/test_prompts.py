"""Counting a prompt's tokens, which may do nothing else with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from census import registry
from kubediffusion.worker.prompts import cut_warnings, text_encoders
from unit.worker.worker_builders import image_request

PROCESSORS = ["flux-2", "kandinsky-5", "qwen-image-2.1"]


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_prompt_that_is_an_address_or_a_path_is_only_text(name: str, tmp_path: Path, touched: list[str]) -> None:
    component = "processor" if name == "qwen-image-2.1" else "tokenizer"
    processor = transformers.AutoProcessor.from_pretrained(registry.folder(name) / component, local_files_only=True)
    (encoder,) = text_encoders([(component, processor)], 32)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"")
    for prompt in ("http://127.0.0.1:9/planted.png", str(secret), f"file://{secret}"):
        touched.clear()
        assert cut_warnings(image_request(prompt=prompt * 3), [encoder])
        assert encoder.count(prompt) == len(prompt)
        assert not [seen for seen in touched if "planted" in seen or "secret" in seen or "127.0.0.1" in seen]


def test_what_takes_images_alone_is_no_text_encoder() -> None:
    processor = transformers.CLIPImageProcessor()
    assert text_encoders([("processor", processor)], 32) == ()
