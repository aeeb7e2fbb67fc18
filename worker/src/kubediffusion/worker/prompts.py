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

    Where a pipeline has a processor, its tokenizer is asked: a processor takes images first, and fetches an address or
    opens a path that it is given as one. Nothing derived from a prompt may do that.

    Args:
        components: Name and object of each component.
        max_sequence_length: Default of the pipeline's argument of that name, which bounds all encoders but CLIP's.
    """
    found = []
    for name, component in components:
        tokenizer = _tokenizer(component) if name.startswith(("tokenizer", "processor")) else None
        if tokenizer is None:
            continue
        limit = int(getattr(tokenizer, "model_max_length", UNLIMITED))
        # Pipelines that mix encoders cut CLIP's text at its own length and the others' at max_sequence_length.
        if max_sequence_length is not None and not type(tokenizer).__name__.startswith("CLIP"):
            limit = max_sequence_length
        if limit < UNLIMITED:
            found.append(TextEncoder(name, limit, _counter(tokenizer)))
    return tuple(found)


def _tokenizer(component: Any) -> Any:
    """Return what turns text alone into tokens: the component, its tokenizer where it is a processor, or None."""
    inner = getattr(component, "tokenizer", None)
    tokenizer = component if inner is None else inner
    # What has no vocabulary is no tokenizer: an image processor, for example.
    return tokenizer if callable(getattr(tokenizer, "get_vocab", None)) else None


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
