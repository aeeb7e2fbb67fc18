"""No credential of a worker is in anything that it writes, whatever a library quotes."""

from __future__ import annotations

import json
import sys

from integration.worker.bench_of_workers import STANDIN, START_SECONDS, Bench, start
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import present

TOKEN = "hf_planted+token/of=ours"
SESSION = "planted session/token"


async def test_credentials_are_in_no_status_log_or_last_word(bench: Bench) -> None:
    """Planted in each variable that holds one, and quoted in every form that libraries use."""
    key = bench.namespace.cluster.store.settings["AWS_SECRET_ACCESS_KEY"]
    start(
        bench.namespace,
        "talkative",
        source={"path": "/"},
        command=[sys.executable, str(STANDIN)],
        # A Secret that was made of a file ends with a newline.
        HF_TOKEN=f"{TOKEN}\n",
        HUGGING_FACE_HUB_TOKEN="hf_planted_before",
        AWS_SESSION_TOKEN=SESSION,
    )
    bench.namespace.wait_ready("talkative", START_SECONDS)
    await bench.run("quotes", "talkative", prompt="quote the secrets")
    quotes = await bench.reached("quotes")
    assert quotes.status.phase is Phase.FAILED
    await bench.run("dies", "talkative", prompt="lose the secrets")
    bench.namespace.wait_phase("talkative", "Failed")
    outputs = {
        "status": json.dumps(quotes.to_wire()),
        "log": bench.namespace.kubectl("logs", "talkative"),
        "pod": json.dumps(bench.namespace.pod_status("talkative")),
        "events": bench.namespace.kubectl("get", "events", "--output=json"),
    }
    assert present(quotes.status.error).message.count("***") >= 15
    assert "as libraries do" in outputs["log"]
    for where in ("log", "pod"):
        assert outputs[where].count("***") >= 15, where
    for where, text in outputs.items():
        assert "planted" not in text, where
        assert b"planted".hex() not in text, where
        assert key not in text, where
        assert key.encode().hex() not in text, where
