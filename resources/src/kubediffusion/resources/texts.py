"""Texts that the API server bounds: cut where a resource is built, so that no text of another party can refuse a write.

What goes into a status often quotes others (a refusal of the API server, an error of a library), whose length nobody
promises. Specs are not cut: there the API server refuses, with the field's name.
"""

from __future__ import annotations

from functools import partial

from pydantic import BeforeValidator

ELLIPSIS = "…"

MAX_REASON = 1024
"""Characters of a condition's reason."""
MAX_MESSAGE = 32_768
"""Characters of a condition's message, as in ``metav1.Condition``; also of a job's error."""
MAX_NOTE = 1024
"""Characters of a warning and of how a worker's start stands; bytes of an Event's note (``events.k8s.io/v1``): its
documentation says characters, but the API server counts bytes."""


def shorten(text: str, most: int) -> str:
    """Cut a text to at most ``most`` characters, with an ellipsis at the end of one that was cut.

    Characters are Unicode code points, as the API server counts them. Lone surrogates, which JSON can carry and UTF-8
    cannot, become question marks.
    """
    if not text.isascii():
        text = text.encode(errors="replace").decode()
    return text if len(text) <= most else text[: most - len(ELLIPSIS)] + ELLIPSIS


def shorten_note(text: str) -> str:
    """Cut the note of an Event to :data:`MAX_NOTE` bytes of UTF-8, with an ellipsis at the end of one that was cut."""
    data = text.encode(errors="replace")
    if len(data) <= MAX_NOTE:
        return data.decode()
    return data[: MAX_NOTE - len(ELLIPSIS.encode())].decode(errors="ignore") + ELLIPSIS


def cut_to(most: int) -> BeforeValidator:
    """Return the annotation of a text field that is cut to ``most`` characters when its resource is built."""
    return BeforeValidator(partial(_shorten_any, most=most))


def _shorten_any(value: object, most: int) -> object:
    return shorten(value, most) if isinstance(value, str) else value
