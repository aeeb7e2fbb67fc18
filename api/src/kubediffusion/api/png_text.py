"""A text in a PNG that passes through, for programs that read there how an image was made."""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator

from kubediffusion.api.images import ImageBody

KEYWORD = b"parameters"
"""Where Stable Diffusion's web UIs write it, and galleries and other UIs read it."""

HEAD = 33
"""Bytes of the signature and the chunk IHDR, which every PNG begins with (https://www.w3.org/TR/png-3/#5PNG-file-signature);
any other chunk may come after them."""


def text_chunk(text: str) -> bytes:
    """Build the chunk that holds a text: ``tEXt`` where Latin-1 is enough, which every reader knows, else ``iTXt``."""
    try:
        kind, data = b"tEXt", KEYWORD + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        # Not compressed, no language, no translated keyword.
        kind, data = b"iTXt", KEYWORD + b"\0\0\0\0\0" + text.encode()
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class PngWithText(ImageBody):
    """A PNG with a text added.

    Args:
        png: The image; closed with this body.
        text: The text.
    """

    def __init__(self, png: ImageBody, text: str) -> None:
        self._png = png
        self._chunk = text_chunk(text)
        super().__init__(png.length + len(self._chunk))

    async def pieces(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes: all but the last piece in multiples of 3, as base64 needs them."""
        left, head = b"", HEAD
        async for piece in self._png.pieces():
            whole = left + (piece[:head] + self._chunk + piece[head:] if head else piece)
            head = 0
            cut = len(whole) - len(whole) % 3
            yield whole[:cut]
            left = whole[cut:]
        yield left

    def close(self) -> None:
        """Let go of the image."""
        self._png.close()
