"""A worker without fences: its reports test nothing, and its images replace whatever is stored."""

from typing import Any

from kubediffusion.resources.storage import PNG, ImageStorage
from kubediffusion.worker import reports

fenced_patch = reports.fenced_patch


def patch_without_tests(*arguments: Any) -> list[dict[str, Any]]:
    """Return the patch without what must hold before it is applied."""
    return [operation for operation in fenced_patch(*arguments) if operation["op"] != "test"]


def put_over_anything(self: ImageStorage, key: str, data: bytes, attempt: int) -> str:
    """Store an image over that of any attempt."""
    del attempt
    self._client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=PNG)
    return self.uri(key)


reports.fenced_patch = patch_without_tests  # type: ignore[assignment]
ImageStorage.put = put_over_anything  # type: ignore[method-assign]
