"""What several measurements use: a clock of the device, a comparison of pictures, a line for people."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def say(text: str) -> None:
    """Print a line with the time, and flush it."""
    sys.stdout.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stdout.flush()


def attempt(name: str, part: Callable[[], Any]) -> Any:
    """Return what a part of a measurement finds, and say it; a part that breaks leaves the others, and its error."""
    began = time.monotonic()
    try:
        with torch.inference_mode():
            found = part()
    except Exception:  # noqa: BLE001 - what breaks one part leaves the others
        found = {"broken": traceback.format_exc()[-1500:]}
    say(f"{name} ({time.monotonic() - began:.1f} s): {json.dumps(found)}")
    return found


def milliseconds(run: Callable[[], object], count: int = 20) -> float:
    """Return the milliseconds that the device takes for one run: the mean of some, after one that warms up."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    begin.record()
    for _ in range(count):
        run()
    end.record()
    torch.cuda.synchronize()
    return round(begin.elapsed_time(end) / count, 3)


def levels_apart(a: Any, b: Any) -> int:
    """Return the largest difference of two pictures of one size, in levels of 255."""
    left, right = (np.frombuffer(picture.rgb, np.uint8).astype(int) for picture in (a, b))
    return int(np.abs(left - right).max())
