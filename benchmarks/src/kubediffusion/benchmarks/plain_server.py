"""A plain server, to compare with: FastAPI over a dictionary, the work as a background task of the same process.

``python -m kubediffusion.benchmarks.plain_server PORT SECONDS``: a task takes ``SECONDS``.
"""

from __future__ import annotations

import base64
import sys
import time
import uuid

import uvicorn
from fastapi import BackgroundTasks, FastAPI, HTTPException
from pydantic import BaseModel

from kubediffusion.local.reservations import LOOPBACK

PNG = base64.b64encode(bytes(256)).decode()
"""Stands for an image of the stand-in's size, in base64."""


class Request(BaseModel):
    """A request for an image."""

    prompt: str
    negative_prompt: str | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    seed: int | None = None


class Task(BaseModel):
    """The state of a task."""

    task_id: str
    status: str = "pending"
    prompt: str
    image_base64: str | None = None
    error_message: str | None = None


def application(seconds: float) -> FastAPI:
    """Build the server, whose engine waits for ``seconds`` at each task."""
    app = FastAPI()
    tasks: dict[str, Task] = {}

    def run(task: Task) -> None:
        time.sleep(seconds)
        task.image_base64 = PNG
        task.status = "completed"

    @app.post("/generate", status_code=202)
    async def generate(request: Request, background: BackgroundTasks) -> dict[str, str]:
        task = Task(task_id=str(uuid.uuid4()), prompt=request.prompt)
        tasks[task.task_id] = task
        background.add_task(run, task)
        return {
            "task_id": task.task_id,
            "status": task.status,
            "message": "Task received and queued for processing.",
        }

    @app.get("/results/{task_id}")
    async def results(task_id: str) -> Task:
        if task_id not in tasks:
            raise HTTPException(404, "Task ID not found.")
        return tasks[task_id]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model_status": "available"}

    return app


if __name__ == "__main__":
    uvicorn.run(
        application(float(sys.argv[2])), host=LOOPBACK, port=int(sys.argv[1]), access_log=False, log_level="error"
    )
