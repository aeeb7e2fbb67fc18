"""Adapters in the prompts of AUTOMATIC1111's clients: ``<lora:NAME:SCALE>``. Pure.

The web UI takes them out of the prompt and makes the image with them:
https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#lora
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from kubediffusion.api.errors import InvalidRequestError, problem
from kubediffusion.resources.adapters import AppliedAdapter

_TAG = re.compile(r"<lora:([^<>]*)>", re.IGNORECASE)


def without_loras(prompt: str) -> tuple[str, list[dict[str, Any]]]:
    """Return a prompt without the adapters that it names, and these as fields of a job.

    Without a scale an adapter counts as it says itself.

    Raises:
        InvalidRequestError: A scale is no number, or there are two of them.
    """
    named: list[dict[str, Any]] = []
    for tag in _TAG.findall(prompt):
        name, *scales = (part.strip() for part in tag.split(":"))
        if len(scales) > 1:
            message = f"<lora:{tag[:100]}> has several scales; an adapter has one here, as in <lora:{name[:63]}:0.8>"
            raise InvalidRequestError([problem("prompt", message)])
        try:
            scale = {"scale": float(scales[0])} if scales else {}
        except ValueError:
            message = f"<lora:{tag[:100]}>: its scale must be a number, as in <lora:{name[:63]}:0.8>"
            raise InvalidRequestError([problem("prompt", message)]) from None
        named.append({"name": name, **scale})
    return (_TAG.sub("", prompt).strip() if named else prompt), named


def _text(scale: float) -> str:
    """Return a scale in full: what is sent again must make the same image."""
    return repr(float(scale)).removesuffix(".0")


def with_loras(prompt: str, adapters: Iterable[AppliedAdapter]) -> str:
    """Return a prompt with the adapters that its images were made with, as clients show and send it again."""
    return " ".join([prompt, *(f"<lora:{each.name}:{_text(each.scale)}>" for each in adapters)])


def hashes(adapters: Iterable[AppliedAdapter]) -> str:
    """Write the digests of adapters as the web UI does in the text of an image; empty where none is known."""
    known = ", ".join(f"{each.name}: {each.digest[:12]}" for each in adapters if each.digest is not None)
    return f'"{known}"' if known else ""
