"""What the proxy does to watch events stays within what Kubernetes promises."""

from __future__ import annotations

import json

from chaos.proxy import Proxy


def event(uid: str, revision: int) -> bytes:
    return json.dumps({"type": "MODIFIED", "object": {"metadata": {"uid": uid, "resourceVersion": revision}}}).encode()


def test_one_objects_versions_stay_in_order_and_none_is_lost() -> None:
    events = [event(uid, revision) for revision in range(50) for uid in ("a", "b", "c")]
    seen = Proxy("http://127.0.0.1:1", 2, seed=3).jumbled(events)
    assert seen != events
    assert set(seen) == set(events)
    for uid in ("a", "b", "c"):
        found = [json.loads(line)["object"]["metadata"] for line in seen]
        revisions = [metadata["resourceVersion"] for metadata in found if metadata["uid"] == uid]
        assert revisions == sorted(revisions)
        assert len(revisions) > len(set(revisions))
