"""What schemathesis sends as the body of an upload: pictures, and what is none."""

from __future__ import annotations

import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def _picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, form)
    return file.getvalue()


# A file of a form: an image, and a mask too, whose transparent pixels are edited.
_CLEAR = io.BytesIO()
Image.new("RGBA", (4, 3)).save(_CLEAR, "PNG")
schemathesis.openapi.format("binary", st.just(_CLEAR.getvalue()))

for _form in ("png", "jpeg", "webp"):
    schemathesis.openapi.media_type(f"image/{_form}", st.just(_picture(_form)) | st.binary(max_size=64))
