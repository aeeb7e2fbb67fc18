"""Finds the prompts that a pipeline's text encoders truncate, with the pipeline's own tokenizers.

diffusers logs the truncated text. Here it becomes a warning in the job's status instead: no prompt belongs in a log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kubediffusion.worker.engine import ImageRequest

UNLIMITED = 100_000
"""A larger ``model_max_length`` is none: transformers gives an astronomic number where a tokenizer has no limit."""


@dataclass(frozen=True)
class TextEncoder:
    """How much text one encoder of a pipeline takes.

    Attributes:
        name: Component of the pipeline, for example ``tokenizer_2``.
        limit: Tokens that it takes, start and end tokens included.
        count: Returns the number of tokens of a text, start and end tokens included.
    """

    name: str
    limit: int
    count: Callable[[str], int]


def text_encoders(components: Iterable[tuple[str, Any]], max_sequence_length: int | None) -> tuple[TextEncoder, ...]:
    """Return the encoders of a pipeline that truncate text, found by their tokenizers.

    Args:
        components: Name and object of each component.
        max_sequence_length: Default of the pipeline's argument of that name, which bounds all encoders but CLIP's.
    """
    found = []
    for name, component in components:
        if not name.startswith("tokenizer") or component is None:
            continue
        limit = int(getattr(component, "model_max_length", UNLIMITED))
        # Pipelines that mix encoders cut CLIP's text at its own length and the others' at max_sequence_length.
        if max_sequence_length is not None and not type(component).__name__.startswith("CLIP"):
            limit = max_sequence_length
        if limit < UNLIMITED:
            found.append(TextEncoder(name, limit, _counter(component)))
    return tuple(found)


def _counter(tokenizer: Any) -> Callable[[str], int]:
    def count(text: str) -> int:
        return len(tokenizer(text, truncation=False, verbose=False).input_ids)

    return count


def cut_warnings(request: ImageRequest, encoders: Sequence[TextEncoder]) -> list[str]:
    """Return a warning for each text of a request that an encoder truncates."""
    warnings = []
    for field, text in (("prompt", request.prompt), ("negativePrompt", request.negative_prompt)):
        for encoder in encoders:
            if not text or (cut := encoder.count(text) - encoder.limit) <= 0:
                continue
            which = f" ({encoder.name})" if len(encoders) > 1 else ""
            tokens = "the last token was" if cut == 1 else f"the last {cut} tokens were"
            warnings.append(
                f"{field} is too long for the text encoder{which}: {tokens} cut, it takes {encoder.limit} tokens with "
                "the marks of start and end"
            )
    return warnings
