"""What polling is measured against: the task API over a dictionary, as FastAPI's tutorial would have them."""

from __future__ import annotations

import sys
import uuid
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Request(BaseModel):
    prompt: str
    negative_prompt: str | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    seed: int | None = None


class Result(BaseModel):
    task_id: str
    status: str
    prompt: str
    image_base64: str | None = None
    error_message: str | None = None


app = FastAPI()
tasks: dict[str, dict[str, Any]] = {}


@app.post("/generate", status_code=202)
async def generate(request: Request) -> dict[str, str]:
    task_id = str(uuid.uuid4())
    tasks[task_id] = {"task_id": task_id, "status": "pending", "prompt": request.prompt}
    return {"task_id": task_id, "status": "pending", "message": "Task received and queued for processing."}


@app.get("/results/{task_id}", response_model=Result)
async def results(task_id: str) -> dict[str, Any]:
    if task_id not in tasks:
        raise HTTPException(404, "Task ID not found.")
    return tasks[task_id]


if __name__ == "__main__":
    port = int(sys.argv[1])
    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="error")
