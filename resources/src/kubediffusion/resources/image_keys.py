"""The keys of images in storage."""

from __future__ import annotations


def image_key(prefix: str, namespace: str, uid: str, index: int) -> str:
    """Return the S3 key of an image, ``prefix/namespace/uid/index.png``: a retry overwrites its own bytes."""
    return "/".join(part for part in (prefix.strip("/"), namespace, uid, f"{index}.png") if part)


def preview_key(prefix: str, namespace: str, uid: str) -> str:
    """Return the S3 key of a job's preview, beside its images: each preview overwrites the one before."""
    return "/".join(part for part in (prefix.strip("/"), namespace, uid, "preview.png") if part)


def is_image_key_of(key: str, namespace: str, uid: str, index: int) -> bool:
    """Return whether a key is that of an image of the job, under whatever prefix it was stored.

    A path that climbs is none, since some servers keep keys as paths.
    """
    parts = key.split("/")
    return parts[-3:] == [namespace, uid, f"{index}.png"] and not {".", ".."} & set(parts)
