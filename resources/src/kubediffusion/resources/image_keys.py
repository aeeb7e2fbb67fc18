"""The keys of images in storage."""

from __future__ import annotations


def image_key(prefix: str, namespace: str, uid: str, index: int) -> str:
    """Return the S3 key of an image, ``prefix/namespace/uid/index.png``: a retry overwrites its own bytes."""
    return "/".join(part for part in (prefix.strip("/"), namespace, uid, f"{index}.png") if part)
