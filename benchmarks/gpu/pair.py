"""Two workers on two GPUs of one machine, each its own process, against one alone."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import make, tasks

_GPUS = 2
_MEASURE = Path(__file__).with_name("measure.py")


def saturate_both(given: argparse.Namespace, saturate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Saturate this worker and one on the second GPU at the same time; both beside what this one does alone.

    Args:
        given: The command's arguments, which the second process gets too.
        saturate: Saturates this process's worker and returns its ``images/s``.

    Returns:
        Images a second of this one alone, of both, and their ratio; nothing where there is no second GPU.
    """
    if torch.cuda.device_count() < _GPUS:
        return {}
    other = subprocess.Popen(
        [
            *(sys.executable, _MEASURE, given.folder, given.out.with_name("second.json")),
            *(f"--s3={given.s3}", f"--scratch={given.scratch}-second", f"--cache={given.cache}"),
            *(f"--port={given.port}", "--second", f"--limit={given.limit}", *(["--plain"] if given.plain else [])),
        ],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        for line in other.stdout or ():
            if line.startswith("ready"):
                break
        before = saturate()
        if other.stdin is not None:
            other.stdin.write("go\n")
            other.stdin.flush()
        ours = saturate()
        theirs = json.loads((other.stdout and other.stdout.read()) or "{}")
    rate = "images/s"
    return {
        "alone": before[rate],
        "together": [ours[rate], theirs[rate]],
        "ratio": round((ours[rate] + theirs[rate]) / before[rate], 3),
    }


def serve_as_the_second(engine: Any, limit: int, saturate: Callable[[], dict[str, Any]]) -> None:
    """Be the second worker of :func:`saturate_both`: prepare, wait to be told, work, and print how fast it went."""
    with torch.inference_mode():
        while engine.preparation.capture():
            pass
        steps, decoder = engine.preparation.prepared.step_runner, engine.decoder
        while not (steps.prepare(limit) and decoder.prepare()):
            free = threading.Event()
            if engine.compiler is not None:
                engine.compiler.when_free(free.set)
                free.wait()
        make(engine, tasks(limit), limit)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write(json.dumps(saturate()))
