"""Celery with Redis: the queue that a plain server is told to grow into.

A program (``python -m kubediffusion.benchmarks.celery_queue FOLDER SINGLES JOBS``), as waiting for results blocks.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kubediffusion.benchmarks import figures
from kubediffusion.local.processes import Process, Program
from kubediffusion.local.reservations import LOOPBACK, Reservations

ANSWER_SECONDS = 60.0
APP = "kubediffusion.benchmarks.celery_app"
URL = "KUBEDIFFUSION_BENCHMARK_REDIS"


def missing() -> str | None:
    """Say what is not installed here, and how to install it; None when all is."""
    if find_spec("celery") is None:
        return "Celery is not installed; `make bench` installs it"
    if shutil.which("redis-server") is None:
        return "redis-server is not installed; on Debian and Ubuntu: apt-get install redis-server"
    return None


def run(folder: Path, singles: int, jobs: int) -> dict[str, Any]:
    """Measure tasks one at a time, then many at once, with one worker process and a Redis that keeps nothing on disk.

    Returns:
        completed (percentiles in seconds, one at a time), jobs and seconds (until the last of a burst was known).
    """
    with ExitStack() as stack:
        port = stack.enter_context(Reservations()).port()
        os.environ[URL] = f"redis://{LOOPBACK}:{port}/0"
        from kubediffusion.benchmarks.celery_app import app, generate

        redis = ["redis-server", "--port", str(port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no"]
        celery = [sys.executable, "-m", "celery", f"--app={APP}", "worker", "--concurrency=1", "--loglevel=WARNING"]
        environment = dict(os.environ)

        def answering() -> bool:
            return bool(app.control.ping(timeout=0.5))

        for program in (
            Program("Redis", redis, folder / "redis.log", lambda: True, environment),
            Program("Celery's worker", celery, folder / "celery.log", answering, environment),
        ):
            process = Process(program)
            stack.callback(process.stop)
            process.start()
            process.wait_ready()
        seconds = []
        for number in range(singles):
            began = time.perf_counter()
            generate.delay("a fox", number).get(timeout=ANSWER_SECONDS)
            seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        for sent in [generate.delay("a fox", number) for number in range(jobs)]:
            sent.get(timeout=ANSWER_SECONDS)
        return {"completed": figures.percentiles(seconds), "jobs": jobs, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
