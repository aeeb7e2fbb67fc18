"""Who gets in and what is refused: keys, limits, sizes, fields, and what the cluster itself refuses."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration.api.api_kit import COMMAND, Api, Site, Stage, StartApi, png
from kubediffusion.api.main import listening_sockets
from kubediffusion.local.certificates import Authority
from kubediffusion.local.testing import Namespace, wait_for
from kubediffusion.resources import meta

OPEN = (
    "/",
    "/page/page.js",
    "/health",
    "/livez",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/docs/assets/swagger-ui.css",
)


CREATION = {
    "apiGroups": [meta.GROUP],
    "apiVersions": [meta.VERSION],
    "resources": [meta.GENERATION_JOBS],
    "operations": ["CREATE"],
}
"""What admission webhooks and policies of a test are asked about."""


def problems(answer: httpx.Response) -> dict[str, str]:
    """Return the fields that a 422 names, and what it says of each."""
    assert answer.status_code == 422, answer.text
    return {".".join(map(str, problem["loc"])): problem["msg"] for problem in answer.json()["detail"]}


def generate(api: Api, **body: object) -> httpx.Response:
    return api.http.post("/generate", json={"prompt": "a cat", **body})


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"prompt": ""}, "body.prompt", "at least 1"),
        ({"prompt": "x" * 4001}, "body.prompt", "at most 4000"),
        ({"negative_prompt": "x" * 4001}, "body.negative_prompt", "at most 4000"),
        ({"num_inference_steps": 0}, "body.num_inference_steps", "greater than or equal to 1"),
        ({"num_inference_steps": 151}, "body.num_inference_steps", "exceeds the limit 150"),
        ({"num_inference_steps": 2.5}, "body.num_inference_steps", "valid integer"),
        ({"guidance_scale": -1}, "body.guidance_scale", "greater than or equal to 0"),
        ({"guidance_scale": 50.5}, "body.guidance_scale", "less than or equal to 50"),
        ({"seed": -1}, "body.seed", "greater than or equal to 0"),
        ({"seed": 2**63}, "body.seed", "less than or equal to 9223372036854775807"),
        ({"seed": 2**63 - 1, "num_images": 2}, "body.seed", "beyond 9223372036854775807"),
        ({"width": 513}, "body.width", "multiple of 8"),
        ({"height": 2048}, "body.height", "exceeds the limit 1024"),
        ({"num_images": 5}, "body.num_images", "exceeds the limit 4"),
        ({"scheduler": "Nonsense"}, "body.scheduler", "DDIMScheduler"),
        ({"acceleration": 3}, "body.acceleration", "should be an object"),
        ({"acceleration": {"feature_cachin": {}}}, "body.acceleration.feature_cachin", "'feature_caching'?"),
        (
            {"acceleration": {"feature_caching": {"interval": 0}}},
            "body.acceleration.feature_caching.interval",
            "greater than or equal to 1",
        ),
        (
            {"acceleration": {"guidance_interval": {"start": 0.8, "stop": 0.2}}},
            "body.acceleration.guidance_interval",
            "start, 0.8, must be below stop, 0.2",
        ),
        ({"model": "unknown"}, "body.model", "known models: tiny"),
        ({"numInferenceSteps": 5}, "body.numInferenceSteps", "did you mean 'num_inference_steps'?"),
        ({"promt": "x"}, "body.promt", "did you mean 'prompt'?"),
        ({"steps": 5}, "body.steps", "did you mean 'num_inference_steps'?"),
        ({"cfg_scale_xyz": 5}, "body.cfg_scale_xyz", "Unknown field"),
    ],
)
def test_a_bad_value_is_refused_by_name(api: Api, body: dict[str, object], field: str, reason: str) -> None:
    assert reason in problems(generate(api, **body))[field]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["guidance_scale", "num_inference_steps", "seed", "prompt"])
def test_what_is_no_number_is_refused(api: Api, field: str, value: str) -> None:
    body = f'{{"prompt": "a cat", "{field}": {value}}}'
    answer = api.http.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert f"body.{field}" in problems(answer)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 5000]
)
def test_what_is_no_json_object_is_refused(api: Api, body: bytes) -> None:
    answer = api.http.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert "body" in problems(answer)


def test_another_content_type_is_refused(api: Api) -> None:
    answer = api.http.post("/generate", content=b'{"prompt": "a cat"}', headers={"Content-Type": "text/plain"})
    assert "application/json" in problems(answer)["body"]


def test_an_answer_does_not_echo_what_was_sent(api: Api) -> None:
    answer = generate(api, prompt="x" * 4001, seed="my secret")
    assert "xxx" not in answer.text
    assert "my secret" not in answer.text


def test_a_body_over_64_kib_is_413(api: Api) -> None:
    answer = generate(api, prompt="x" * 70_000)
    assert (answer.status_code, answer.json()) == (
        413,
        {"detail": "The request body is too large: at most 65536 bytes are taken."},
    )

    def endless() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(20):
            yield b"x" * 10_000

    chunked = api.http.post("/generate", content=endless(), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 413


def test_a_body_that_never_ends_is_413_before_its_end(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"x" * 32_768
        for _ in range(3):
            connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        assert connection.recv(1024).startswith(b"HTTP/1.1 413")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.data())
def test_any_body_is_accepted_or_refused_never_an_error(api: Api, body: st.DataObject) -> None:
    known = ["prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "seed", "width", "model", "other"]
    values = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=2)
    )
    content = body.draw(
        st.one_of(
            st.binary(max_size=200),
            st.dictionaries(st.sampled_from(known), values, max_size=5).map(lambda value: json.dumps(value).encode()),
            st.fixed_dictionaries({"prompt": st.text(max_size=20)}, optional={"seed": st.integers(0, 2**63)}).map(
                lambda value: json.dumps(value).encode()
            ),
        )
    )
    answer = api.http.post("/generate", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in {202, 422}, answer.text
    assert "detail" in answer.json() or "task_id" in answer.json()


@given(task_id=st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_task_id_is_answered(api: Api, task_id: str) -> None:
    assert api.http.get(f"/results/{quote(task_id, safe='')}").status_code in {200, 404, 429}


def test_keys(start_api: StartApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "alice").write_text("alice-key\n")
    api = start_api(API_KEYS_FILE=str(keys))
    for path in OPEN:
        assert api.http.get(path).status_code == 200, path
    missing = api.http.post("/generate", json={"prompt": "a cat"})
    assert missing.status_code == 401
    assert missing.headers["WWW-Authenticate"] == "Bearer"
    assert missing.headers["X-Request-ID"]
    for path in ("/results/x", "/v1/jobs", "/v1/models", "/nowhere"):
        assert api.http.get(path).status_code == 401, path
        assert api.http.get(path, headers={"X-API-Key": "wrong"}).status_code == 403, path
    for headers in ({"Authorization": "Bearer alice-key"}, {"X-API-Key": "alice-key"}):
        accepted = api.http.post("/generate", json={"prompt": "a cat"}, headers=headers)
        assert accepted.status_code == 202
        assert api.http.get(f"/results/{accepted.json()['task_id']}", headers=headers).status_code == 200

    # Another client is let in, and the first one locked out, without a restart.
    (keys / "bob").write_text("bob-key")
    (keys / "alice").unlink()
    wait_for("the new key", lambda: _allowed(api, "bob-key"))
    wait_for("the old key's end", lambda: not _allowed(api, "alice-key"))
    log = api.log.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    # It tells of keys and of who used them, by their clients' names.
    assert [line["client"] for line in lines if "client" in line] == ["alice", "alice"]
    assert [line["clients"] for line in lines if "clients" in line][-1] == ["bob"]
    for key in ("alice-key", "bob-key"):
        assert key not in log


def _allowed(api: Api, key: str) -> bool:
    return api.http.get("/v1/models", headers={"X-API-Key": key}).status_code == 200


def test_the_rate_limit_is_each_clients_own(start_api: StartApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("alice", "bob"):
        (keys / name).write_text(f"{name}-key")
    api = start_api(API_KEYS_FILE=str(keys), RATE_LIMIT="3/hour")
    alice, bob = {"X-API-Key": "alice-key"}, {"X-API-Key": "bob-key"}
    # Both doors count, and polling does not.
    statuses = [
        api.http.post(path, json={"prompt": "a cat"}, headers=alice).status_code
        for path in ("/generate", "/v1/jobs", "/generate", "/generate", "/v1/jobs")
    ]
    assert statuses == [202, 201, 202, 429, 429]
    limited = api.http.post("/generate", json={"prompt": "a cat"}, headers=alice)
    assert 3000 < int(limited.headers["Retry-After"]) <= 3600
    assert api.http.post("/generate", json={"prompt": "a cat"}, headers=bob).status_code == 202
    assert api.http.get("/v1/jobs", headers=alice).status_code == 200


def test_addresses_behind_a_trusted_proxy_count_apart(start_api: StartApi) -> None:
    api = start_api(RATE_LIMIT="1/hour", TRUSTED_PROXIES="127.0.0.1")
    for address in ("192.0.2.1", "192.0.2.2"):
        headers = {"X-Forwarded-For": address}
        statuses = [api.http.post("/generate", json={"prompt": "x"}, headers=headers).status_code for _ in range(2)]
        assert statuses == [202, 429]


def test_an_address_that_nobody_vouches_for_is_not_believed(start_api: StartApi) -> None:
    api = start_api(RATE_LIMIT="1/hour")
    statuses = [
        api.http.post("/generate", json={"prompt": "x"}, headers={"X-Forwarded-For": address}).status_code
        for address in ("192.0.2.1", "192.0.2.2")
    ]
    assert statuses == [202, 429]


def test_the_cap_on_unfinished_jobs(site: Site) -> None:
    api = site.start(MAX_UNFINISHED_JOBS="2")
    first = api.generate()
    api.generate()
    full = generate(api)
    assert full.status_code == 429
    assert full.headers["Retry-After"]
    site.stage.cancelled(first)
    wait_for("room", lambda: generate(api).status_code == 202)
    assert generate(api).status_code == 429


def test_one_key_has_a_cap_and_a_highest_priority_of_its_own(start_api: StartApi, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("carol", "dave"):
        (keys / name).write_text(f"{name}-key")
    limits = {"dave": {"maxUnfinishedJobs": 3, "maxPriority": 5}}
    api = start_api(API_KEYS_FILE=str(keys), MAX_UNFINISHED_JOBS_BY_KEY="2", KEY_LIMITS=json.dumps(limits))

    def post(name: str, **fields: object) -> httpx.Response:
        return api.http.post("/generate", json={"prompt": "a cat", **fields}, headers={"X-API-Key": f"{name}-key"})

    assert [post("carol").status_code for _ in range(3)] == [202, 202, 429]
    assert "of this API key" in post("carol").json()["detail"]
    # Another key has room of its own, and a restart forgets nothing.
    assert post("dave").status_code == 202
    api.kill()
    api.start()
    assert post("carol").status_code == 429
    assert problems(post("dave", priority=6)) == {
        "body.priority": "6 exceeds the highest priority that this client may ask for, 5"
    }
    assert [post("dave", priority=5).status_code for _ in range(3)] == [202, 202, 429]


def test_addresses_of_jobs_have_the_prefix_that_clients_see(start_api: StartApi, stage: Stage) -> None:
    api = start_api(ROOT_PATH="/images")
    created = api.http.post("/images/v1/jobs/", json={"prompt": "a cat"})
    assert created.status_code == 201
    location = created.headers["Location"]
    assert location == f"/images/v1/jobs/{created.json()['name']}"
    stage.complete(created.json()["name"], png())
    api.wait_phase(created.json()["name"], "Succeeded")
    image = api.http.get(location).json()["images"][0]
    assert api.http.get(image["path"]).content == png()
    assert image["path"].startswith("/images/v1/")


def test_what_a_client_writes_into_a_forwarded_header_gives_it_no_more(start_api: StartApi) -> None:
    for proxies in ("127.0.0.1", "*"):
        api = start_api(RATE_LIMIT="1/hour", TRUSTED_PROXIES=proxies)
        statuses = [
            api.http.post(
                "/generate", json={"prompt": "x"}, headers={"X-Forwarded-For": f"198.51.100.{number}, 192.0.2.1"}
            ).status_code
            for number in range(3)
        ]
        assert statuses == [202, 429, 429]


def test_a_quota_of_the_namespace_is_429(site: Site) -> None:
    api = site.start()
    site.stage.namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "jobs"},
            "spec": {"hard": {"count/generationjobs.kubediffusion.io": "1"}},
        }
    )
    # The quota controller looks for new kinds of objects twice a minute.
    refused = wait_for("the quota", lambda: _refused(api), seconds=240)
    assert refused.status_code == 429, refused.text
    assert "quota" in refused.json()["detail"]


def _refused(api: Api) -> httpx.Response | None:
    answer = generate(api)
    # Until the controller has counted once, the API server refuses everything, which is not the quota's own doing.
    return None if answer.status_code == 202 or "status unknown for quota" in answer.text else answer


@contextlib.contextmanager
def webhook(namespace: Namespace, **client: str) -> Iterator[None]:
    """Let a webhook decide about the namespace's jobs."""
    asked = {
        "name": "webhook.example.com",
        "rules": [CREATION],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
        "clientConfig": client,
        "timeoutSeconds": 1,
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    registration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": namespace.name},
        "webhooks": [asked],
    }
    namespace.cluster.apply([registration])
    try:
        yield
    finally:
        namespace.cluster.kubectl("delete", "validatingwebhookconfiguration", namespace.name)


def test_a_webhook_that_does_not_answer_is_503_and_passes(site: Site) -> None:
    api, namespace = site.start(RATE_LIMIT=""), site.stage.namespace
    with webhook(namespace, url="https://127.0.0.1:1/"):
        refused = wait_for("the webhook", lambda: _refused(api))
    assert refused.status_code == 503, refused.text
    assert refused.headers["Retry-After"]
    assert "127.0.0.1" not in refused.text
    assert "failed calling webhook" in api.log.read_text()
    wait_for("the webhook to be gone", lambda: generate(api).status_code == 202)


DENIALS = {"cat": {"code": 401, "message": "no cats"}, "hen": {"code": 413, "reason": "no hens"}, "pig": {"code": 418}}
"""What a webhook says of jobs for these: each has a status of its own, and another way to say why."""


class Denying(BaseHTTPRequestHandler):
    """Such a webhook."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = asked["request"]
        status = DENIALS.get(request["object"]["spec"]["prompt"].removeprefix("a "))
        response = {"uid": request["uid"], "allowed": status is None, **({"status": status} if status else {})}
        content = json.dumps({**asked, "request": None, "response": response}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_webhook_that_denies_is_422_with_its_words_whatever_its_status(site: Site, tmp_path: Path) -> None:
    api, namespace = site.start(RATE_LIMIT=""), site.stage.namespace
    authority = Authority("webhooks", tmp_path)
    pair = authority.server("webhook", "127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Denying) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        trusted = base64.b64encode(authority.certificate.read_bytes()).decode()
        with webhook(namespace, url=f"https://127.0.0.1:{server.server_port}/", caBundle=trusted):
            wait_for("the webhook", lambda: _refused(api))
            refused = {animal: generate(api, prompt=f"a {animal}") for animal in DENIALS}
            api.generate("a dog")
        server.shutdown()
    words = {"cat": "no cats", "hen": "no hens", "pig": "without explanation"}
    for animal, answer in refused.items():
        assert words[animal] in problems(answer)["body"]


def test_a_rule_of_the_cluster_s_owner_is_422_with_its_words(site: Site) -> None:
    api, namespace = site.start(RATE_LIMIT=""), site.stage.namespace
    name = namespace.name
    selector = {"matchLabels": {"kubernetes.io/metadata.name": name}}
    # Every reason that the API server lets a policy give; it makes 403, 413 and 422 of them.
    reasons = {"cat": "Forbidden", "hen": "RequestEntityTooLarge", "pig": "Invalid"}
    validations = [
        {"expression": f"!object.spec.prompt.contains('{animal}')", "message": f"no {animal}s", "reason": reason}
        for animal, reason in reasons.items()
    ]
    policies = "admissionregistration.k8s.io/v1"
    namespace.cluster.apply(
        [
            {
                "apiVersion": policies,
                "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": name},
                "spec": {
                    "matchConstraints": {"namespaceSelector": selector, "resourceRules": [CREATION]},
                    "validations": validations,
                },
            },
            {
                "apiVersion": policies,
                "kind": "ValidatingAdmissionPolicyBinding",
                "metadata": {"name": name},
                "spec": {"policyName": name, "validationActions": ["Deny"]},
            },
        ]
    )
    try:
        wait_for("the policy", lambda: _refused(api))
        refused = {animal: generate(api, prompt=f"a {animal}") for animal in reasons}
        api.generate("a dog")
    finally:
        kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy"
        namespace.cluster.kubectl("delete", kinds, name)
    for animal, answer in refused.items():
        assert f"no {animal}s" in problems(answer)["body"]


def test_a_key_of_idempotency_gives_one_job(api: Api, replica: Api) -> None:
    headers = {"Idempotency-Key": "order-66"}
    first = api.http.post("/generate", json={"prompt": "a cat", "seed": 1}, headers=headers)
    assert first.status_code == 202
    for server in (api, replica):
        for path, status in (("/generate", 202), ("/v1/jobs", 201)):
            again = server.http.post(path, json={"prompt": "a cat", "seed": 1}, headers=headers)
            assert again.status_code == status, again.text
            assert again.json().get("task_id", again.json().get("name")) == first.json()["task_id"]
        changed = server.http.post("/generate", json={"prompt": "a dog"}, headers=headers)
        assert "another request" in problems(changed)["header.Idempotency-Key"]


def test_a_key_of_idempotency_at_the_same_moment_on_two_replicas(api: Api, replica: Api) -> None:
    def send(number: int) -> httpx.Response:
        server = (api, replica)[number % 2]
        return server.http.post("/generate", json={"prompt": "a cat"}, headers={"Idempotency-Key": "order-67"})

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(16)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1


def test_prompts_stay_out_of_the_log(api: Api, start_api: StartApi) -> None:
    silent, talking = api, start_api(LOG_PROMPTS="true")
    for server in (silent, talking):
        task_id = server.generate("a very personal prompt")
        assert task_id in server.log.read_text()
    assert "personal" not in silent.log.read_text()
    assert "personal" in talking.log.read_text()
    lines = [json.loads(line) for line in talking.log.read_text().splitlines()]
    assert [line["job"] for line in lines if line.get("prompt") == "a very personal prompt"] == [task_id]


def test_a_requests_id_comes_back(api: Api) -> None:
    assert api.http.get("/health", headers={"X-Request-ID": "mine"}).headers["X-Request-ID"] == "mine"
    assert api.http.get("/health", headers={"X-Request-ID": "x" * 200}).headers["X-Request-ID"] != "x" * 200
    accepted = api.http.post("/generate", json={"prompt": "a cat"}, headers={"X-Request-ID": "order-7"}).json()
    lines = [json.loads(line) for line in api.log.read_text().splitlines()]
    assert [line["job"] for line in lines if line.get("request_id") == "order-7"] == [accepted["task_id"]]
    ids = {api.http.get("/nowhere").headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5


def test_the_documentation_needs_no_internet(api: Api) -> None:
    page = api.http.get("/docs").text
    assert "http" not in page.replace("http-equiv", "")
    assert api.http.get("/docs/assets/swagger-ui-bundle.js").status_code == 200
    document = api.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    request = document["components"]["schemas"]["JobRequest"]["properties"]
    assert (request["num_inference_steps"]["default"], request["guidance_scale"]["default"]) == (50, 7.5)
    assert all(field.get("description") for field in request.values())


def test_it_serves_over_every_family_of_addresses(start_api: StartApi) -> None:
    api = start_api(BIND_ADDRESS="")
    families = set()
    for listening in listening_sockets("", 0):
        families.add(listening.family)
        listening.close()
    assert socket.AF_INET in families
    hosts = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "[::1]"}
    for family in families:
        answer = httpx.get(f"http://{hosts[family]}:{api.port}/livez", trust_env=False)
        assert answer.status_code == 200


def test_wrong_settings_are_named() -> None:
    environment = {"PATH": os.environ["PATH"], "KUBEDIFFUSION_PORT": "none", "KUBEDIFFUSION_RATE_LIMIT": "fast"}
    done = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert "KUBEDIFFUSION_PORT" in done.stderr
    assert "KUBEDIFFUSION_RATE_LIMIT" in done.stderr
