"""The checker, on histories made by hand: it is silent on a good one, and names what is wrong with each bad one."""

from __future__ import annotations

import ast
import copy
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import chaos
from chaos.checker import check
from chaos.evidence import Evidence, Memory, Pace, Span, Version
from chaos.picture import POISONED_EXIT_CODE, pixels, rounded

JOB, WORKER, OTHER = "uid-1", "fast-0-abc", "fast-1-def"
KEY = f"images/chaos/{JOB}/0.png"
SPEC = {"prompt": "a fox", "backoffLimit": 1}
RECIPE = {"model": "fast", "seed": 5, "numInferenceSteps": 4, "guidanceScale": 7.5, "numImages": 1}
MIB = 2**20


def png(rgb: bytes, side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), rgb).save(buffer, format="PNG")
    return buffer.getvalue()


DRAWN = pixels("a fox", None, 5, 4, 7.5, 16, 16)
DATA = png(rounded(DRAWN, WORKER))


def image(data: bytes = DATA, **fields: Any) -> dict[str, Any]:
    known = {"index": 0, "uri": f"s3://bucket/{KEY}", "width": 16, "height": 16, "seed": 5}
    return {**known, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **fields}


class History:
    """A run of one job, told step by step."""

    def __init__(self) -> None:
        self.evidence = Evidence("chaos", "bucket", "images", accepted={"fox"}, stored={KEY: DATA}, kept={KEY})
        self.revision = 0
        self.meta = {"name": "fox", "uid": JOB, "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.spec = dict(SPEC)
        for name in (WORKER, OTHER):
            self.pod(name, phase="Running")

    def add(self, kind: str, change: str, item: dict[str, Any], gap: bool) -> History:
        self.revision += 1
        self.evidence.versions.append(Version(kind, change, copy.deepcopy(item), self.revision, gap))
        return self

    def pod(self, name: str, change: str = "MODIFIED", *, told_to_go: bool = False, **status: Any) -> History:
        owner = {"uid": f"job-of-{name}", "kind": "Job"}
        meta = {"name": name, "uid": f"pod-{name}", "ownerReferences": [owner]}
        meta |= {"deletionTimestamp": "2026-01-01T00:00:01Z"} if told_to_go else {}
        return self.add("Pod", change, {"metadata": meta, "status": status}, gap=False)

    def job(self, phase: str, change: str = "MODIFIED", *, gap: bool = False, **status: Any) -> History:
        item = {"metadata": self.meta, "spec": self.spec, "status": {"phase": phase, **status}}
        return self.add("GenerationJob", change, item, gap)

    def bound(self, phase: str = "Scheduled", worker: str = WORKER, attempt: int = 1, **status: Any) -> History:
        return self.job(phase, worker=worker, attempt=attempt, parameters=RECIPE, **status)

    def succeeded(self, worker: str = WORKER, attempt: int = 1, **status: Any) -> History:
        return self.bound("Succeeded", worker, attempt, **{"images": [image()], **status})

    def laws(self) -> set[str]:
        return {violation.law for violation in check(self.evidence)}


@pytest.fixture
def history() -> History:
    return History()


def test_a_plain_success_is_good(history: History) -> None:
    assert history.job("Pending").bound().bound("Running").succeeded().laws() == set()


def test_a_job_whose_worker_died_may_be_bound_again(history: History) -> None:
    history.job("Pending").bound("Running").pod(WORKER, phase="Failed")
    assert history.bound(worker=OTHER, attempt=2, retries=1).succeeded(OTHER, 2, retries=1).laws() == set()


@pytest.mark.parametrize(
    "end", [{"change": "DELETED"}, {"phase": "Succeeded"}, {"conditions": [{"type": "Failed", "status": "True"}]}]
)
def test_every_way_for_a_worker_to_go_is_a_cause(history: History, end: dict[str, Any]) -> None:
    history.job("Pending").bound().pod(WORKER, **end)
    assert history.bound(worker=OTHER, attempt=2).succeeded(OTHER, 2).laws() == set()


def test_an_accepted_job_that_was_never_seen_is_lost(history: History) -> None:
    history.evidence.accepted.add("unseen")
    assert history.job("Pending").bound().succeeded().laws() == {"each accepted job ends"}


GAP = Span(10, 20)


@pytest.mark.parametrize(
    ("life", "lost"),
    [
        (Span(12, 15), False),
        (Span(5, 11), False),
        (Span(19, 30), False),
        (Span(2, 9), True),
        (Span(21, 22), True),
        (None, True),
    ],
    ids=["within", "deleted in it", "created in it", "before", "after", "not confirmed"],
)
def test_a_job_that_its_client_deleted_while_nobody_saw_it_is_not_lost(
    history: History, life: Span | None, lost: bool
) -> None:
    history.evidence.accepted.add("unseen")
    history.evidence.deleted.add("unseen")
    history.evidence.gaps.append(GAP)
    if life is not None:
        history.evidence.lives["unseen"] = life
    laws = history.job("Pending").bound().succeeded().laws()
    assert laws == ({"each accepted job ends"} if lost else set())


def test_a_deleted_job_that_was_never_seen_is_lost_where_nothing_could_be_missed(history: History) -> None:
    history.evidence.accepted.add("unseen")
    history.evidence.deleted.add("unseen")
    history.evidence.lives["unseen"] = GAP
    assert history.job("Pending").bound().succeeded().laws() == {"each accepted job ends"}


def test_a_job_that_never_ends_is_lost(history: History) -> None:
    history.evidence.stored.clear()
    assert history.job("Pending").bound().laws() == {"each accepted job ends"}


def test_a_job_that_vanished_is_lost_unless_somebody_deleted_it(history: History) -> None:
    history.job("Pending").job("Pending", "DELETED")
    assert history.laws() == {"each accepted job ends"}
    history.evidence.deleted.add("fox")
    assert history.laws() == set()


@pytest.mark.parametrize("after", ["Failed", "Pending", "Cancelled"])
def test_an_end_that_is_left(history: History, after: str) -> None:
    history.meta["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    history.job("Pending").bound().succeeded().bound(after, images=[image()], error={"code": "x"})
    assert "no end is left" in history.laws()


def test_an_end_whose_result_changes(history: History) -> None:
    history.job("Pending").bound().succeeded().succeeded(images=[image(b"other")])
    assert {"no end is left", "results do not change", "images are what was asked"} == history.laws()


def test_a_cancellation_that_nobody_asked_for(history: History) -> None:
    assert history.job("Pending").job("Cancelled").laws() == {"only who was asked is cancelled"}


def test_a_cancellation_that_somebody_asked_for(history: History) -> None:
    history.spec["cancel"] = True
    assert history.job("Pending").job("Cancelled").laws() == set()


def test_a_confirmed_cancellation_that_is_lost(history: History) -> None:
    history.evidence.cancelled.add("fox")
    assert history.job("Pending").bound().succeeded().laws() == {"only who was asked is cancelled"}


@pytest.mark.parametrize(
    ("code", "retries", "good"),
    [("BackoffLimitExceeded", 2, True), ("BackoffLimitExceeded", 1, False), ("StorageFailed", 0, False)],
)
def test_only_a_cause_of_its_own_fails_a_job(history: History, code: str, retries: int, good: bool) -> None:
    before = max(retries - 1, 0)
    history.job("Pending", retries=before).bound("Running", retries=before).pod(WORKER, phase="Failed")
    history.bound("Failed", retries=retries, error={"code": code, "message": "m"})
    assert history.laws() == (set() if good else {"failures have a cause"})


@pytest.mark.parametrize(("completed", "good"), [("00:00:31", True), ("00:00:20", False)])
def test_a_deadline_must_have_passed(history: History, completed: str, good: bool) -> None:
    history.spec["activeDeadlineSeconds"] = 30
    failure: dict[str, Any] = {"error": {"code": "DeadlineExceeded"}, "completionTime": f"2026-01-01T{completed}Z"}
    assert history.job("Pending").job("Failed", **failure).laws() == (set() if good else {"failures have a cause"})


def test_one_order_that_became_two_jobs(history: History) -> None:
    history.job("Pending").bound().succeeded()
    twin = copy.deepcopy(history.evidence.versions[-1].object)
    twin["metadata"] |= {"uid": "uid-2", "name": "twin"}
    history.add("GenerationJob", "ADDED", twin, gap=False)
    assert "each order is one job" in history.laws()


def test_a_job_taken_from_a_living_worker(history: History) -> None:
    history.job("Pending").bound().bound(worker=OTHER, attempt=2).succeeded(OTHER, 2)
    assert history.laws() == {"only lost jobs are bound again"}


def test_a_job_sent_back_to_the_queue_from_a_living_worker(history: History) -> None:
    history.job("Pending").bound().job("Pending", attempt=1).bound(attempt=2).succeeded(attempt=2)
    assert history.laws() == {"only lost jobs are bound again"}


def test_a_worker_that_dies_only_later_is_no_cause(history: History) -> None:
    history.job("Pending").bound().bound(worker=OTHER, attempt=2).pod(WORKER, phase="Failed").succeeded(OTHER, 2)
    assert history.laws() == {"only lost jobs are bound again"}


def test_a_worker_that_never_was(history: History) -> None:
    history.job("Pending").bound(worker="nobody").succeeded("nobody")
    assert history.laws() == {"jobs are bound to workers"}


@pytest.mark.parametrize(
    "steps",
    [
        [{"phase": "Scheduled", "attempt": 2}],
        [{"phase": "Scheduled", "attempt": 1}, {"phase": "Scheduled", "attempt": 0}],
        [{"phase": "Scheduled", "attempt": 1}, {"phase": "Scheduled", "attempt": 1, "worker": OTHER}],
        [{"phase": "Pending", "retries": 1}],
        [{"phase": "Succeeded", "attempt": 1}],
    ],
)
def test_attempts_that_are_miscounted(history: History, steps: Any) -> None:
    history.job("Pending")
    for step in steps:
        history.job(**{"worker": WORKER, **step})
    assert "attempts are counted" in history.laws()


def test_a_death_that_no_retry_was_counted_for(history: History) -> None:
    history.job("Pending").bound("Running").pod(WORKER, phase="Failed").bound(worker=OTHER, attempt=2)
    assert history.succeeded(OTHER, 2).laws() == {"attempts are counted"}


def test_a_drain_that_no_retry_was_counted_for(history: History) -> None:
    history.job("Pending").bound("Running").pod(WORKER, told_to_go=True, phase="Failed")
    assert history.bound(worker=OTHER, attempt=2).succeeded(OTHER, 2).laws() == set()


def test_what_a_recording_has_missed_is_no_fault_of_the_system(history: History) -> None:
    history.job("Pending").job("Running", gap=True, worker=OTHER, attempt=2, retries=1, parameters=RECIPE)
    assert history.succeeded(OTHER, 2, retries=1).laws() == set()


def test_a_seed_that_is_drawn_twice(history: History) -> None:
    history.job("Pending").bound().pod(WORKER, phase="Failed")
    history.job("Scheduled", worker=OTHER, attempt=2, parameters=RECIPE | {"seed": 6})
    assert "results do not change" in history.succeeded(OTHER, 2).laws()


@pytest.mark.parametrize(
    "wrong",
    [
        {"stored": {}},
        {"stored": {KEY: png(rounded(DRAWN, OTHER))}},
        {"images": [image(seed=6)]},
        {"images": [image(uri="s3://bucket/elsewhere.png")]},
        {"images": []},
        {"spec": {"seed": 9}},
        {"spec": {"prompt": "another fox"}},
        {"spec": {"numImages": 2}},
    ],
)
def test_an_image_that_is_not_what_was_asked(history: History, wrong: dict[str, Any]) -> None:
    history.spec |= wrong.get("spec", {})
    history.evidence.stored = wrong.get("stored", history.evidence.stored)
    history.job("Pending").bound().succeeded(images=wrong.get("images", [image()]))
    assert history.laws() == {"images are what was asked"}


def test_a_deterministic_job_bears_no_rounding(history: History) -> None:
    history.job("Pending").bound()
    history.job("Succeeded", worker=WORKER, attempt=1, images=[image()], parameters=RECIPE | {"deterministic": True})
    assert history.laws() == {"images are what was asked"}


def test_images_that_stay_after_their_job(history: History) -> None:
    history.spec["deletionPolicy"] = "Delete"
    assert history.job("Pending").bound().succeeded().laws() == {"no image is left over"}


def test_images_of_nobody(history: History) -> None:
    history.evidence.kept.add("images/chaos/uid-9/0.png")
    assert history.job("Pending").bound().succeeded().laws() == {"no image is left over"}


def test_what_is_left_running(history: History) -> None:
    history.evidence.remains.append("pods fast-0-abc")
    assert history.job("Pending").bound().succeeded().laws() == {"nothing remains"}


@pytest.mark.parametrize(
    ("samples", "good"),
    [
        ([(0, 60), (100, 90), (400, 95)], True),
        ([(0, 60), (100, 90), (400, 200)], False),
        ([(0, 60), (100, 260)], False),
        ([(0, 10), (100, 240)], True),
    ],
)
def test_memory_that_grows(history: History, samples: list[tuple[int, int]], good: bool) -> None:
    history.job("Pending").bound().succeeded()
    history.evidence.memory = [Memory("operator", 1, finished, held * MIB) for finished, held in samples]
    assert history.laws() == (set() if good else {"memory does not grow"})


def test_the_checker_knows_nothing_of_what_it_judges() -> None:
    folder = Path(chaos.__file__).parent
    for name in ("blame", "checker", "evidence", "picture", "recorder", "violation"):
        tree = ast.parse((folder / f"{name}.py").read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in imports for alias in node.names}
        modules = {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
        assert not any(found.startswith("kubediffusion") for found in names | modules)


def test_only_who_makes_a_worker_exit_spends_a_retry_for_it(history: History) -> None:
    exited = [{"name": "worker", "state": {"terminated": {"exitCode": POISONED_EXIT_CODE}}}]
    history.job("Pending").bound("Running").pod(WORKER, phase="Failed", containerStatuses=exited)
    history.bound(worker=OTHER, attempt=2, retries=1).succeeded(OTHER, 2, retries=1)
    assert history.laws() == {"only the guilty fail"}


def test_who_makes_its_worker_exit_fails(history: History) -> None:
    exited = [{"name": "worker", "state": {"terminated": {"exitCode": POISONED_EXIT_CODE}}}]
    history.evidence.guilty.add("fox")
    history.job("Pending", retries=1).bound("Running", retries=1)
    history.pod(WORKER, phase="Failed", containerStatuses=exited)
    assert history.bound("Failed", retries=2, error={"code": "Crashed", "message": "m"}).laws() == set()


def test_who_makes_its_worker_exit_does_not_succeed(history: History) -> None:
    history.evidence.guilty.add("fox")
    assert history.job("Pending").bound().succeeded().laws() == {"only the guilty fail"}


@pytest.mark.parametrize(("beside", "laws"), [((1.0, 1.3), set()), ((1.0, 1.5), {"others end as fast"})])
def test_others_end_as_fast(history: History, beside: tuple[float, ...], laws: set[str]) -> None:
    history.evidence.paces.append(Pace("a fault", (1.0, 1.0), beside))
    assert history.job("Pending").bound().succeeded().laws() == laws


def test_a_retry_need_not_be_counted_for_one_of_several_that_ran(history: History) -> None:
    history.job("Pending").bound("Running")
    history.meta = {**history.meta, "name": "hare", "uid": "uid-2"}
    history.spec = {**history.spec, "prompt": "a hare"}
    history.job("Pending").bound("Running").pod(WORKER, phase="Failed")
    history.job("Pending", worker=None, attempt=1, retries=0)
    history.meta = {**history.meta, "name": "fox", "uid": JOB}
    history.spec = dict(SPEC)
    history.job("Pending", worker=None, attempt=1, retries=0)
    assert "attempts are counted" not in history.laws()
