"""What the cluster itself refuses: quotas, webhooks, policies."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from integration.api.api_kit import Api, Site, generate, problems
from integration.webhooks import webhook
from kubediffusion.local.certificates import Authority
from kubediffusion.local.testing import wait_for
from kubediffusion.resources import meta

CREATION = {
    "apiGroups": [meta.GROUP],
    "apiVersions": [meta.VERSION],
    "resources": [meta.GENERATION_JOBS],
    "operations": ["CREATE"],
}


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


def test_a_webhook_that_does_not_answer_is_503_and_passes(site: Site) -> None:
    api, namespace = site.start(RATE_LIMIT=""), site.stage.namespace
    with webhook(namespace, CREATION, {"url": "https://127.0.0.1:1/"}, timeout_seconds=1):
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
        address = {"url": f"https://127.0.0.1:{server.server_port}/", "caBundle": trusted}
        with webhook(namespace, CREATION, address, timeout_seconds=1):
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
