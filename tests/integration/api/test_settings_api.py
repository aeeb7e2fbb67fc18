"""Settings of the API that no other test is about: each changes what clients see."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from integration.api.api_kit import Site, png
from integration.api.calls import newest, spec
from kubediffusion.local.testing import wait_for


def test_how_long_a_presigned_address_holds(site: Site) -> None:
    api = site.start(PRESIGN_SECONDS="77", IMAGE_FORM="url")
    task_id = api.generate()
    site.stage.complete(task_id, png())
    address = wait_for("the image", lambda: api.result(task_id).get("image_url"))
    assert httpx.URL(address).params["X-Amz-Expires"] == "77"
    redirect = api.http.get(f"/v1/jobs/{task_id}/images/0", params={"image": "url"})
    assert (redirect.status_code, httpx.URL(redirect.headers["Location"]).params["X-Amz-Expires"]) == (307, "77")


@pytest.mark.parametrize("path", ["/v1/images/generations", "/sdapi/v1/txt2img"])
def test_how_long_a_request_that_waits_may_take(site: Site, path: str) -> None:
    api, prompt = site.start(OPENAI_DEADLINE_SECONDS="41"), f"a clock for {path}"
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(api.http.post, path, json={"prompt": prompt}, timeout=120)
        name = wait_for("the job", lambda: newest(api, prompt))
        assert spec(site.stage, name)["activeDeadlineSeconds"] == 41
        site.stage.complete(name, png())
        assert call.result(120).status_code == 200


def test_how_long_a_body_may_be(site: Site) -> None:
    api = site.start(MAX_BODY_BYTES="300")
    assert api.http.post("/generate", json={"prompt": "a" * 200}).status_code == 202
    assert api.http.post("/generate", json={"prompt": "a" * 300}).status_code == 413


def test_how_long_requests_may_take_that_are_under_way_when_it_goes(site: Site) -> None:
    api = site.start(SHUTDOWN_SECONDS="2")
    with socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\n\r\n{")
        wait_for("the request", lambda: api.http.get("/readyz").status_code == 200)
        began = time.monotonic()
        api.stop()
        # At the default it would be waited for for 20 seconds.
        assert time.monotonic() - began < 15
