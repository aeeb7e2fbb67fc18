"""Images of any size, from storage to clients: whole, checked, the job's own, and within the memory that there is."""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import os
import re
from pathlib import Path

import httpx
import pytest

from integration.api.api_kit import Api, Stage, StartApi, listed, png
from kubediffusion.local import installation

MIB = 1024 * 1024
LARGE = 4096 * 4096 * 3
"""Bytes of a 4096² image of noise, which PNG cannot make smaller."""
CLIENTS = 20
CHART_LIMIT = 512 * MIB
"""Of ``api.resources.limits.memory``."""


def completed(api: Api, stage: Stage, *images: bytes) -> str:
    task_id = api.generate()
    stage.complete(task_id, *images)
    api.wait_phase(task_id, "Succeeded")
    return task_id


def peak_memory(api: Api) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{api.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_twenty_clients_of_the_largest_images_stay_within_the_charts_limit(start_api: StartApi, stage: Stage) -> None:
    api = start_api(RATE_LIMIT="")
    data = os.urandom(LARGE)
    digest = hashlib.sha256(data).hexdigest()
    task_id = completed(api, stage, data)

    def fetch(number: int) -> str:
        found = hashlib.sha256()
        path = f"/v1/jobs/{task_id}/images/0" if number % 2 else f"/results/{task_id}"
        with httpx.Client(base_url=api.url, trust_env=False, timeout=120) as http, http.stream("GET", path) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Length"]
            if number % 2:
                for piece in answer.iter_bytes():
                    found.update(piece)
                return found.hexdigest()
            # Base64 among JSON, put together again by fours.
            rest = b""
            started = False
            for piece in answer.iter_bytes():
                rest += piece
                if not started:
                    rest, started = rest.split(b'"image_base64":"', 1)[1], True
                text = rest.partition(b'"')[0]
                whole = len(text) // 4 * 4
                found.update(base64.b64decode(text[:whole]))
                rest = rest[whole:]
            return found.hexdigest()

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        assert set(pool.map(fetch, range(CLIENTS))) == {digest}
    assert peak_memory(api) < CHART_LIMIT / 2


@pytest.mark.parametrize("size", [MIB, 8 * MIB])
def test_an_altered_image_is_never_taken_for_whole(api: Api, stage: Stage, size: int) -> None:
    data = os.urandom(size)
    task_id = completed(api, stage, data)
    uri = stage.job(task_id)["status"]["images"][0]["uri"]
    stage.overwrite(uri, os.urandom(size))
    for path in (f"/v1/jobs/{task_id}/images/0", f"/results/{task_id}"):
        try:
            answer = api.http.get(path)
        except httpx.RemoteProtocolError:
            # Broken off before its end.
            assert size > 4 * MIB
        else:
            assert answer.status_code == 502, path
    stage.overwrite(uri, os.urandom(size - 1))
    for path in (f"/v1/jobs/{task_id}/images/0", f"/results/{task_id}"):
        assert api.http.get(path).status_code == 502, path


@pytest.mark.parametrize("size", [2, MIB, 8 * MIB])
def test_head_says_what_get_says(api: Api, stage: Stage, size: int) -> None:
    data = os.urandom(size)
    task_id = completed(api, stage, data)
    for path in (f"/v1/jobs/{task_id}/images/0", f"/results/{task_id}", f"/v1/jobs/{task_id}"):
        head, get = api.http.head(path), api.http.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert get.status_code == 200
        assert int(head.headers["Content-Length"]) == len(get.content)
        assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_a_status_that_names_another_jobs_image_opens_nothing(api: Api, stage: Stage) -> None:
    """Who may write one job's status must not read what this server may read."""
    theirs = completed(api, stage, png("green"))
    image = stage.job(theirs)["status"]["images"][0]
    for uri in (image["uri"], f"{image['uri']}/../../{{uid}}/0.png", "s3://elsewhere/secret"):
        mine = api.generate()
        uid = stage.job(mine)["metadata"]["uid"]
        stage.bind(mine)
        stage.run(mine)
        stage.claim(mine, {**image, "uri": uri.format(uid=uid)})
        api.wait_phase(mine, "Succeeded")
        answers = [
            api.http.get(f"/results/{mine}"),
            api.http.get(f"/results/{mine}", params={"image": "url"}),
            api.http.get(f"/v1/jobs/{mine}/images/0"),
            api.http.get(f"/v1/jobs/{mine}/images/0", params={"image": "url"}),
        ]
        assert [answer.status_code for answer in answers] == [502] * 4, uri
        assert "Signature" not in "".join(answer.text for answer in answers)


def test_an_image_under_a_prefix_of_former_days_is_still_the_jobs_own(api: Api, stage: Stage) -> None:
    task_id = api.generate()
    uid = stage.job(task_id)["metadata"]["uid"]
    stage.bind(task_id)
    stage.run(task_id)
    uri = f"s3://{installation.BUCKET}/an/older/prefix/{stage.namespace.name}/{uid}/0.png"
    stage.overwrite(uri, png("blue"))
    stage.claim(task_id, listed(0, uri, png("blue")))
    api.wait_phase(task_id, "Succeeded")
    assert api.http.get(f"/v1/jobs/{task_id}/images/0").content == png("blue")
