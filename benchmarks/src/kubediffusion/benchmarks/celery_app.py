"""What runs in Celery's worker: a task that gives a tiny picture, as the stand-in's engine does in no time."""

from __future__ import annotations

import base64
import hashlib
import io
import os

from celery import Celery
from PIL import Image

URL = "KUBEDIFFUSION_BENCHMARK_REDIS"
SIZE = 8

app = Celery("benchmark", broker=os.environ.get(URL), backend=os.environ.get(URL))


def _generate(prompt: str, seed: int) -> str:
    """Return a PNG in base64."""
    del prompt
    pixels = hashlib.shake_256(str(seed).encode()).digest(SIZE * SIZE * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (SIZE, SIZE), pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


generate = app.task(_generate)
