"""KubeDiffusion as installed by the chart, and the words that the tests are told in."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import boto3
import httpx
import yaml
from botocore.config import Config

from e2e.e2e_cluster import Cluster, CommandError, Object, is_true, wait_for
from e2e.e2e_node import GPU
from kubediffusion.local.layout import CHART
from kubediffusion.resources import meta

RELEASE = "kubediffusion"
NAMESPACE = "images"
BUCKET, PREFIX = "studio", "made"
MODEL = "tiny"
KEYS, KEY = "api-keys", "a key of the tests"
STEPS = 2
LONG = {"numInferenceSteps": 150, "numImages": 3, "deterministic": True}
"""A job that computes long enough to be disturbed: image by image."""

FINAL = {"Succeeded", "Failed", "Cancelled"}
WORKERS = meta.WORKER_SELECTOR
PREVIOUS_VERSION = "0.0.9"
MISSING_COLUMN = "Progress"
"""What the previous chart's CRD lacks, so that the upgrade has something to add."""


class Studio:
    """An installation, and an administrator who looks at it."""

    def __init__(self, cluster: Cluster, tag: str, next_tag: str) -> None:
        self.cluster, self.tag, self.next_tag = cluster, tag, next_tag
        self.installed = False
        settings = cluster.store.settings
        self.s3 = boto3.client(
            "s3",
            endpoint_url=cluster.store.endpoint,
            region_name=settings["AWS_REGION"],
            aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )

    # Installing.

    def prepare(self, pipeline: Path) -> None:
        """Do what docs/install.md asks for before the chart: a namespace, a bucket, Secrets, weights."""
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
        settings = self.cluster.store.settings | {
            "KUBEDIFFUSION_S3_BUCKET": BUCKET,
            "KUBEDIFFUSION_S3_PREFIX": PREFIX,
        }
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
            secret("kubediffusion-s3", settings),
            secret(KEYS, {"tester": KEY}),
        )
        self.s3.create_bucket(Bucket=BUCKET)
        for file in sorted(path for path in pipeline.rglob("*") if path.is_file()):
            self.s3.upload_file(str(file), BUCKET, f"models/{MODEL}/{file.relative_to(pipeline)}")

    def install(self) -> None:
        """Install the chart of the release before this one."""
        self._helm("install", self._previous_chart(), self.tag)
        self.installed = True

    def reinstall(self) -> None:
        """Install the chart of this checkout where CRDs and jobs of an earlier release are."""
        self._helm("install", CHART, self.next_tag)
        self.installed = True

    def upgrade(self) -> None:
        """Upgrade to the chart of this checkout."""
        self._helm("upgrade", CHART, self.next_tag)

    def _helm(self, verb: str, chart: Path, tag: str) -> None:
        self.cluster.helm(
            verb,
            RELEASE,
            str(chart),
            f"--namespace={NAMESPACE}",
            "--wait",
            "--timeout=5m",
            "--values=-",
            stdin=json.dumps(self.values(tag)),
        )

    def values(self, tag: str) -> Object:
        """Values of the release."""
        port = int(self.cluster.store.endpoint.rsplit(":", 1)[1])
        api = int(self.cluster.plane.url.rsplit(":", 1)[1])
        image = {"image": {"tag": tag}}
        return {
            "image": {"registry": "localhost", "pullPolicy": "Never"},
            "operator": image,
            "worker": image,
            "api": {**image, "apiKeys": {"existingSecret": KEYS}},
            "tests": {"apiKeyName": "tester"},
            "networkPolicy": {"s3": {"ports": [port]}, "apiServer": {"ports": [443, api]}},
            "defaultModel": {
                "create": True,
                "name": MODEL,
                "gpus": 1,
                "spec": {
                    "source": {"s3": {"uri": f"s3://{BUCKET}/models/{MODEL}"}},
                    "workers": {
                        "minReplicas": 1,
                        "maxReplicas": 3,
                        "idleSeconds": 5,
                        "maxBatchSize": 1,
                        # The node's GPUs are simulated.
                        "env": [{"name": "KUBEDIFFUSION_DEVICE", "value": "cpu"}],
                        "terminationGracePeriodSeconds": 60,
                        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}},
                    },
                },
            },
        }

    def _previous_chart(self) -> Path:
        """Make the chart of an older release: another version, and a CRD that lacks a column."""
        folder = self.cluster.folder / "previous" / CHART.name
        shutil.copytree(CHART, folder)
        chart = yaml.safe_load((folder / "Chart.yaml").read_text())
        (folder / "Chart.yaml").write_text(
            yaml.safe_dump(chart | {"version": PREVIOUS_VERSION, "appVersion": PREVIOUS_VERSION})
        )
        file = folder / "crds" / "generationjobs.yaml"
        crd = yaml.safe_load(file.read_text())
        version = crd["spec"]["versions"][0]
        columns = version["additionalPrinterColumns"]
        version["additionalPrinterColumns"] = [c for c in columns if c["name"] != MISSING_COLUMN]
        file.write_text(yaml.safe_dump(crd))
        # That release's hook would apply its own CRDs, not those of the image, which is of this one.
        (folder / "templates" / "crds.yaml").unlink()
        return folder

    # Over HTTP.

    @property
    def url(self) -> str:
        """The Service's own address, which kube-proxy leads to the pods."""
        service = self.cluster.get("service", f"{RELEASE}-api", NAMESPACE)["spec"]
        return f"http://{service['clusterIP']}:{service['ports'][0]['port']}"

    def http(self, method: str, path: str, body: Object | None = None) -> Any:
        """Make a request and return the answer's JSON."""
        with httpx.Client(base_url=self.url, headers={"X-API-Key": KEY}, timeout=30, trust_env=False) as client:
            return client.request(method, path, json=body).raise_for_status().json()

    def generate(self, **wanted: Any) -> str:
        """Send a job as the README does, and return its task id."""
        body = {"prompt": "a fox in the snow", "num_inference_steps": STEPS, **wanted}
        task: str = self.http("POST", "/generate", body)["task_id"]
        return task

    def result(self, task: str) -> Object:
        """Poll until the task has ended."""

        def ended() -> Object | None:
            try:
                found: Object = self.http("GET", f"/results/{task}")
            except httpx.TransportError:
                return None
            return found if found["status"] in {"completed", "failed"} else None

        return wait_for(f"task {task} has ended", ended)

    def image(self, task: str) -> bytes:
        """Wait for a task to complete, and return its image."""
        result = self.result(task)
        assert result["status"] == "completed", result
        return base64.b64decode(result["image_base64"])

    # With kubectl.

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.cluster.kubectl(f"--namespace={NAMESPACE}", *arguments, stdin=stdin)

    def submit(self, name: str, **spec: Any) -> None:
        """Create a job, as `kubectl apply` does."""
        spec = {"prompt": "a fox in the snow", "numInferenceSteps": STEPS, **spec}
        self.cluster.apply(
            {
                "apiVersion": meta.API_VERSION,
                "kind": "GenerationJob",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": spec,
            }
        )

    def job(self, name: str) -> Object:
        """Read a job."""
        return self.cluster.get("generationjob", name, NAMESPACE)

    def phase(self, name: str, *phases: str) -> Object:
        """Wait until a job is in one of the phases; one that ended otherwise fails the test at once."""

        def reached() -> Object | None:
            job = self.job(name)
            found = job["status"]["phase"]
            assert found in phases or found not in FINAL, job["status"]
            return job if found in phases else None

        return wait_for(f"{name} is {' or '.join(phases)}", reached)

    def succeeded(self, *names: str) -> list[Object]:
        """Wait until jobs have succeeded, and check each image against its checksum."""
        jobs = [self.phase(name, "Succeeded") for name in names]
        for job in jobs:
            for image in job["status"]["images"]:
                assert hashlib.sha256(self.stored(image["uri"])).hexdigest() == image["sha256"]
        return jobs

    def workers(self) -> list[Object]:
        """The workers' pods, those that go or are gone left out."""
        pods = self.cluster.list("pods", NAMESPACE, WORKERS)
        alive = [p for p in pods if "deletionTimestamp" not in p["metadata"]]
        return [p for p in alive if p["status"].get("phase") in {"Pending", "Running"}]

    def ready_workers(self) -> list[str]:
        """Names of the workers that hold the model."""
        return sorted(p["metadata"]["name"] for p in self.workers() if is_true(p, "Ready"))

    def running_on(self, name: str) -> str:
        """Wait until a job runs, and return its worker."""
        worker: str = self.phase(name, "Running")["status"]["worker"]
        return worker

    def clear(self) -> None:
        """Delete all jobs."""
        self.kubectl("delete", "generationjobs", "--all")

    def account(self, part: str) -> str:
        """Name of a part's service account, as a user."""
        return f"system:serviceaccount:{NAMESPACE}:{RELEASE}-{part}"

    def as_worker(self, pod: str, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl with the very token that a worker's pod has."""
        token = self.kubectl("exec", pod, "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
        nobody = self.cluster.folder / "nobody.yaml"
        nobody.write_text("")
        authority = self.cluster.plane.authority
        return self.cluster.run(
            "kubectl",
            f"--kubeconfig={nobody}",
            f"--server={self.cluster.plane.url}",
            f"--certificate-authority={authority}",
            f"--token={token}",
            f"--namespace={NAMESPACE}",
            *arguments,
            stdin=stdin,
        )

    # Storage.

    def stored(self, uri: str) -> bytes:
        """Read an image from storage."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()


def secret(name: str, content: dict[str, str]) -> Object:
    """Build a Secret."""
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content}


__all__ = ["GPU", "CommandError", "Studio"]
