"""Where images are written. What cannot be written is refused before a job is made of it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kubediffusion.client.errors import FieldProblem, InvalidRequestError

if TYPE_CHECKING:
    from kubediffusion.client.images import GeneratedImage

STDOUT = "-"
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
LONGEST_NAME = 40


def check_target(target: str | None, count: int) -> None:
    """Check that images can be written there.

    Args:
        target: A file, a folder, ``-`` for standard output, or None for a file named after the prompt.
        count: How many images.

    Raises:
        InvalidRequestError: They cannot.
    """
    if target is None:
        _writable(Path.cwd())
        return
    if target == STDOUT:
        if count > 1:
            raise _refused(f"{count} images do not fit into standard output; name a file")
        if sys.stdout.isatty():
            raise _refused("a PNG is not for a terminal; name a file, or send it on with | or >")
        return
    path = Path(target)
    if path.is_dir():
        _writable(path)
        return
    if path.suffix.lower() not in FORMATS:
        raise _refused(f"{target!r} ends with no format that is known: {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise _refused(f"there is no folder {str(path.parent)!r}")
    _writable(path.parent)


def check_folder(target: str) -> None:
    """Check that pictures of several jobs can be written there.

    Raises:
        InvalidRequestError: It is no folder, so that one would replace the other.
    """
    if not Path(target).is_dir():
        raise _refused(f"{target!r} is no folder, and pictures of several jobs go into one")


def save_images(images: list[GeneratedImage], target: str | None, prompt: str) -> list[str]:
    """Write images and return the names of the files.

    Args:
        images: The images.
        target: As in :func:`check_target`.
        prompt: What files are named after that nobody named.
    """
    if target == STDOUT:
        sys.stdout.buffer.write(images[0].data)
        sys.stdout.buffer.flush()
        return [STDOUT]
    path = Path(target) if target is not None else Path()
    if path.is_dir():
        return [
            str(image.save(_unused(path, name))) for image, name in zip(images, _names(images, prompt), strict=True)
        ]
    if len(images) == 1:
        return [str(images[0].save(path))]
    return [str(image.save(path.with_name(f"{path.stem}-{image.index}{path.suffix}"))) for image in images]


def _names(images: list[GeneratedImage], prompt: str) -> list[str]:
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:LONGEST_NAME].rstrip("-") or "image"
    return [slug if len(images) == 1 else f"{slug}-{image.index}" for image in images]


def _unused(folder: Path, name: str) -> Path:
    number, path = 1, folder / f"{name}.png"
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.png"
    return path


def _writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise _refused(f"nothing can be written into {str(folder)!r}")


def _refused(reason: str) -> InvalidRequestError:
    return InvalidRequestError([FieldProblem("save", reason)], remedy="")
