"""What `helm test` runs: send a job through the Service, wait for it, and check the image against its checksum.

The job and its image go again when all was well. One that was not is kept for an hour, to be looked at.
"""

import hashlib
import json
import os
import struct
import sys
import time
import urllib.error
import urllib.request

URL = os.environ["URL"]
FINAL = {"Succeeded", "Failed", "Cancelled"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def request(method: str, path: str, body: object = None) -> bytes:
    """Make one request and return its body."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("API_KEY"):
        headers["X-API-Key"] = key
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(URL + path, data, headers, method=method)  # noqa: S310 - the Service of this release
    with opener.open(asked, timeout=30) as answer:
        return bytes(answer.read())


def submitted() -> str:
    """Send the job; a server that is not there yet, or has no model yet, is asked again."""
    wanted = {
        "prompt": os.environ["PROMPT"],
        "num_inference_steps": int(os.environ["STEPS"]),
        "deletion_policy": "Delete",
        "ttl_seconds_after_finished": 3600,
    }
    while True:
        try:
            return json.loads(request("POST", "/generate", wanted))["task_id"]
        except urllib.error.HTTPError as error:
            problem = f"{error.code} {error.read().decode(errors='replace')}"
            if error.code != 503:
                sys.exit(f"POST /generate: {problem}")
        except OSError as error:
            problem = str(error)
        pause(f"POST /generate: {problem}")


def remove(job: str) -> None:
    """Delete a job, and wait until it has gone and its image with it."""
    while True:
        try:
            request("DELETE", f"/v1/jobs/{job}")
            problem = "it is still there"
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return
            problem = str(error)
        except OSError as error:
            problem = str(error)
        pause(f"DELETE /v1/jobs/{job}: {problem}")


def pause(problem: str) -> None:
    """Wait before asking again, as there is nothing to be told by; or give up, saying what went wrong last."""
    if time.monotonic() > deadline:
        sys.exit(f"Not in {os.environ['TIMEOUT_SECONDS']} s. {problem}")
    time.sleep(1)


deadline = time.monotonic() + float(os.environ["TIMEOUT_SECONDS"])
task = submitted()
sys.stdout.write(f"job {task}\n")
while True:
    try:
        job = json.loads(request("GET", f"/v1/jobs/{task}"))
    except OSError as error:
        pause(f"GET /v1/jobs/{task}: {error}")
        continue
    if job["phase"] in FINAL:
        break
    pause(f"{job['phase']}: {json.dumps(job['waiting'])}")
if job["phase"] != "Succeeded":
    sys.exit(f"job {task} {job['phase']}: {json.dumps(job['error'])}")
image = request("GET", f"/v1/jobs/{task}/images/0?image=base64")
said = job["images"][0]
found = hashlib.sha256(image).hexdigest()
if found != said["sha256"]:
    sys.exit(f"the image's sha256 is {found}, and the job says {said['sha256']}")
if not image.startswith(PNG_SIGNATURE):
    sys.exit("the image is no PNG")
width, height = struct.unpack(">II", image[16:24])
sys.stdout.write(f"{width}x{height} PNG of {len(image)} bytes, sha256 {found}, as the job says\n")
remove(task)
