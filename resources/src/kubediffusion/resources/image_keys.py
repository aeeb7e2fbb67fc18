"""The keys of images in storage: those that jobs make, and those that they take as inputs."""

from __future__ import annotations

import re

_INPUT_ID = re.compile(r"[0-9a-f]{64}")


def image_key(prefix: str, namespace: str, uid: str, index: int) -> str:
    """Return the S3 key of an image, ``prefix/namespace/uid/index.png``: a retry overwrites its own bytes."""
    return "/".join(part for part in (prefix.strip("/"), namespace, uid, f"{index}.png") if part)


def preview_key(prefix: str, namespace: str, uid: str) -> str:
    """Return the S3 key of a job's preview, beside its images: each preview overwrites the one before."""
    return "/".join(part for part in (prefix.strip("/"), namespace, uid, "preview.png") if part)


def input_key(prefix: str, namespace: str, input_id: str) -> str:
    """Return the S3 key of an input, ``prefix/namespace/inputs/hash``: the same bytes are stored once.

    Args:
        prefix: What the keys of images begin with.
        namespace: The namespace whose jobs may take it.
        input_id: SHA-256 of its bytes, in hexadecimal.

    Raises:
        ValueError: The id is something else, for example a path.
    """
    if not _INPUT_ID.fullmatch(input_id):
        raise ValueError("the id of an input is 64 hexadecimal digits")
    return "/".join(part for part in (prefix.strip("/"), namespace, "inputs", input_id) if part)


def is_image_key_of(key: str, namespace: str, uid: str, index: int) -> bool:
    """Return whether a key is that of an image of the job, under whatever prefix it was stored.

    A path that climbs is none, since some servers keep keys as paths.
    """
    parts = key.split("/")
    return parts[-3:] == [namespace, uid, f"{index}.png"] and not {".", ".."} & set(parts)
