"""An image that was generated: its bytes, as a picture, in a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class GeneratedImage:
    """One image of a job, as it lies in storage; its hash has been checked.

    Attributes:
        data: The PNG.
        job: The job's name.
        index: Its place among the job's images, from 0.
        seed: The noise seed that it was made from; None where nobody said.
        width: Pixels.
        height: Pixels.
        sha256: Hash of the PNG, in hexadecimal.
        flagged: The safety checker flagged it, and it has been blanked.
    """

    data: bytes = field(repr=False)
    job: str
    index: int
    seed: int | None
    width: int
    height: int
    sha256: str
    flagged: bool = False

    def pillow(self) -> Image:
        """Return the picture as Pillow's :class:`~PIL.Image.Image`, its text chunks in ``info``."""
        import io

        from PIL import Image

        image = Image.open(io.BytesIO(self.data))
        image.load()
        return image

    def save(self, path: str | Path) -> Path:
        """Write it to a file, in the format that the file's name ends with; a PNG as it is, recipe included.

        Args:
            path: The file. One that is there is replaced.
        """
        path = Path(path)
        if path.suffix.lower() in {".png", ""}:
            path.write_bytes(self.data)
        else:
            picture = self.pillow()
            (picture if picture.mode in {"RGB", "L"} else picture.convert("RGB")).save(path)
        return path

    def _repr_png_(self) -> bytes:
        """Show it in a notebook."""
        return self.data
