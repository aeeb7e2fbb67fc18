"""Judges what a run has left behind. Pure, and independent: it imports no code of the parts that it judges.

Each law is a function from the evidence to what breaks it. Laws hold for any subsequence of a history, so that versions
that a watch could not see (``Version.gap``) never raise a false alarm.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from PIL import Image

from chaos.blame import only_the_guilty_fail, others_end_as_fast
from chaos.evidence import Evidence, Object, Version
from chaos.picture import alike, pixels
from chaos.violation import Violation, moment, phase, status

TERMINAL = {"Succeeded", "Failed", "Cancelled"}
BOUND = {"Scheduled", "Running"}
DEFAULT_BACKOFF_LIMIT = 3

CLOCK_SECONDS = 1.0
"""Creation timestamps have whole seconds only."""

MOST_MEMORY = 250 * 2**20
"""Bytes that a part may hold: the bound that the design sets for 10,000 jobs."""
GROWTH = 1.25
SLACK = 16 * 2**20
"""A process may hold so many times, and so many bytes more, at its end than when a quarter of its jobs were done."""
LEAST_JOBS = 200
"""What a process holds that has seen fewer jobs is its start."""

Law = Callable[[Evidence], Iterator[Violation]]


def check(evidence: Evidence) -> list[Violation]:
    """Return everything that breaks a law."""
    return [violation for law in LAWS for violation in law(evidence)]


# One end.


def each_accepted_job_ends(evidence: Evidence) -> Iterator[Violation]:
    """Every job that a client was told is accepted, and every other one that exists, reaches a terminal phase."""
    known = {versions[0].name for versions in evidence.jobs.values()}
    for name in sorted(evidence.accepted - known):
        if not _could_not_be_seen(evidence, name):
            yield Violation("each accepted job ends", name, "it was accepted and never seen")
    for versions in evidence.jobs.values():
        last = versions[-1]
        if phase(last) in TERMINAL or (last.change == "DELETED" and last.name in evidence.deleted):
            continue
        how = "was deleted" if last.change == "DELETED" else "is"
        yield Violation("each accepted job ends", last.name, f"it {how} {phase(last)}, and has no end")


def _could_not_be_seen(evidence: Evidence, name: str) -> bool:
    """Return whether a job was deleted, as its client was told, and the recorder was without a watch meanwhile."""
    life = evidence.lives.get(name)
    return life is not None and any(life.overlaps(gap) for gap in evidence.gaps)


def no_end_is_left(evidence: Evidence) -> Iterator[Violation]:
    """A status that is terminal never changes again."""
    for versions in evidence.jobs.values():
        for before, after in pairwise(versions):
            if phase(before) in TERMINAL and status(before) != status(after):
                yield Violation(
                    "no end is left", after.name, f"{phase(before)} became {phase(after)} at {after.revision}"
                )


def only_who_was_asked_is_cancelled(evidence: Evidence) -> Iterator[Violation]:
    """Cancelled means that somebody asked for it; and whoever was told so finds the job ended."""
    for versions in evidence.jobs.values():
        last = versions[-1]
        asked = last.object["spec"].get("cancel") or "deletionTimestamp" in last.object["metadata"]
        if phase(last) == "Cancelled" and not asked:
            yield Violation("only who was asked is cancelled", last.name, "nobody has cancelled or deleted it")
        if last.name in evidence.cancelled and last.change != "DELETED" and not last.object["spec"].get("cancel"):
            yield Violation("only who was asked is cancelled", last.name, "its cancellation was confirmed and is lost")


def failures_have_a_cause(evidence: Evidence) -> Iterator[Violation]:
    """Nothing fails for a fault that was to be survived: only for its deadline or its number of tries."""
    for versions in evidence.jobs.values():
        last = versions[-1]
        if phase(last) != "Failed" or last.name in evidence.guilty:
            continue
        spec, error = last.object["spec"], status(last).get("error", {})
        code = error.get("code")
        if code == "BackoffLimitExceeded":
            limit, retries = spec.get("backoffLimit", DEFAULT_BACKOFF_LIMIT), status(last).get("retries", 0)
            if retries != limit + 1:
                yield Violation(
                    "failures have a cause", last.name, f"failed after {retries} retries with a backoffLimit of {limit}"
                )
        elif code == "DeadlineExceeded" and "activeDeadlineSeconds" in spec:
            lived = moment(status(last)["completionTime"]) - moment(last.object["metadata"]["creationTimestamp"])
            if lived.total_seconds() < spec["activeDeadlineSeconds"] - CLOCK_SECONDS:
                yield Violation("failures have a cause", last.name, f"its deadline came early, after {lived}")
        else:
            yield Violation("failures have a cause", last.name, f"{code}: {error.get('message')}")


def each_order_is_one_job(evidence: Evidence) -> Iterator[Violation]:
    """A request that was sent again, since its answer was lost, made no second job: no prompt comes twice."""
    names: dict[str, list[str]] = defaultdict(list)
    for versions in evidence.jobs.values():
        names[versions[0].object["spec"]["prompt"]].append(versions[0].name)
    for prompt, jobs in names.items():
        if len(jobs) > 1:
            yield Violation("each order is one job", prompt, f"it became {', '.join(jobs)}")


# Attempts.


def attempts_are_counted(evidence: Evidence) -> Iterator[Violation]:
    """An attempt is counted when a job is bound, a retry only when it is let go; neither ever falls."""
    for versions in evidence.jobs.values():
        for before, after in pairwise(versions):
            for problem in _miscounts(evidence, before, after):
                yield Violation("attempts are counted", after.name, f"{problem} at {after.revision}")


def _miscounts(evidence: Evidence, before: Version, after: Version) -> Iterator[str]:
    old, new = status(before), status(after)
    attempts = new.get("attempt", 0) - old.get("attempt", 0)
    retries = new.get("retries", 0) - old.get("retries", 0)
    if attempts < 0 or retries < 0:
        was, now = ((found.get("attempt"), found.get("retries")) for found in (old, new))
        yield f"attempt and retries fell, from {was} to {now}"
    if after.gap:
        return
    if attempts > 1 or retries > 1:
        yield f"{attempts} attempts and {retries} retries in one write"
    if attempts == 1 and phase(after) not in BOUND:
        yield f"an attempt was counted for {phase(after)}"
    if attempts == 0 and new.get("worker") not in {None, old.get("worker")}:
        yield "it changed its worker without a new attempt"
    if retries == 1 and phase(before) not in BOUND:
        yield f"a retry was counted for a job that was {phase(before)}"
    died = _lost(before, after) and not _was_told_to_go(evidence, old.get("worker"), after.revision)
    # Who of several has made their worker exit is found out by running them again; that costs nobody a retry.
    if died and retries == 0 and _was_alone(evidence, old.get("worker")):
        yield "its worker died while it ran alone, and no retry was counted"
    if phase(after) == "Succeeded" and attempts != 0:
        yield "it was bound and succeeded in one write"


def _lost(before: Version, after: Version) -> bool:
    """Return whether a job was taken from the worker that was running it."""
    return phase(before) == "Running" and phase(after) in {"Pending", "Scheduled"}


def _was_taken(before: Version, after: Version) -> bool:
    """Return whether a job left its worker without an outcome."""
    return phase(after) == "Pending" or status(after).get("attempt", 0) != status(before).get("attempt", 0)


def _was_alone(evidence: Evidence, worker: str | None) -> bool:
    """Return whether a worker had no more than one job when it died; one that it had not reported yet may be why."""
    taken = sum(
        status(before).get("worker") == worker
        and phase(before) in BOUND
        and (_was_taken(before, after) or status(after).get("error", {}).get("code") == "BackoffLimitExceeded")
        for versions in evidence.jobs.values()
        for before, after in pairwise(versions)
    )
    return bool(taken <= 1)


def only_lost_jobs_are_bound_again(evidence: Evidence) -> Iterator[Violation]:
    """A job is taken from a worker only when that is gone or going, or the job itself asks for it."""
    for versions in evidence.jobs.values():
        for before, after in pairwise(versions):
            worker = status(before).get("worker")
            if phase(before) not in BOUND or after.gap or after.change == "DELETED":
                continue
            attempt = status(after).get("attempt", 0)
            taken = phase(after) == "Pending" or attempt != status(before).get("attempt", 0)
            if taken and not before.object["spec"].get("suspend") and not _was_going(evidence, worker, after.revision):
                yield Violation(
                    "only lost jobs are bound again",
                    after.name,
                    f"taken from {worker}, which was alive, to {status(after).get('worker')} at {after.revision}",
                )


def jobs_are_bound_to_workers(evidence: Evidence) -> Iterator[Violation]:
    """A job is bound to a Pod that exists, or has existed."""
    for versions in evidence.jobs.values():
        for version in versions:
            worker = status(version).get("worker")
            seen = [pod for pod in evidence.pods.get(worker or "", ()) if pod.revision <= version.revision or pod.gap]
            if worker and not seen:
                yield Violation("jobs are bound to workers", version.name, f"bound to {worker}, which never was")
                break


def _was_going(evidence: Evidence, worker: str | None, revision: int) -> bool:
    """Return whether a worker was gone or going at a revision: its Pod or its batch/v1 Job ended, or was told to."""
    pods = [pod for pod in evidence.pods.get(worker or "", ()) if pod.revision < revision]
    owners = {owner["uid"] for pod in pods for owner in pod.object["metadata"].get("ownerReferences", ())}
    jobs = [job for uid in owners for job in evidence.batch_jobs.get(uid, ()) if job.revision < revision]
    return any(_is_going(version) for version in (*pods, *jobs))


def _was_told_to_go(evidence: Evidence, worker: str | None, revision: int) -> bool:
    """Return whether a worker that is gone was drained or deleted, and did not die."""
    pods = [pod for pod in evidence.pods.get(worker or "", ()) if pod.revision < revision or pod.gap]
    return any(
        "deletionTimestamp" in pod.object["metadata"] or pod.object["status"].get("phase") == "Succeeded" or pod.gap
        for pod in pods
    )


def _is_going(version: Version) -> bool:
    found = version.object.get("status", {})
    return (
        version.change == "DELETED"
        or "deletionTimestamp" in version.object["metadata"]
        or found.get("phase") in {"Succeeded", "Failed"}
        or any(c["type"] in {"Complete", "Failed"} and c["status"] == "True" for c in found.get("conditions", ()))
    )


# Results.


def results_do_not_change(evidence: Evidence) -> Iterator[Violation]:
    """A job names one set of images in all its history, and draws its seed once."""
    for versions in evidence.jobs.values():
        named = {json.dumps(status(version)["images"]) for version in versions if status(version).get("images")}
        if len(named) > 1:
            yield Violation(
                "results do not change", versions[0].name, f"it named {len(named)} different sets of images"
            )
        seeds = {status(version)["parameters"]["seed"] for version in versions if status(version).get("parameters")}
        if len(seeds) > 1:
            yield Violation("results do not change", versions[0].name, f"it has had the seeds {sorted(seeds)}")


def images_are_what_was_asked(evidence: Evidence) -> Iterator[Violation]:
    """Each image's bytes hash to its status, and its pixels are those of the job's recipe."""
    for versions in evidence.jobs.values():
        last = versions[-1]
        if phase(last) != "Succeeded" or (last.change == "DELETED" and _goes_with_its_images(last)):
            continue
        for problem in _image_problems(evidence, last):
            yield Violation("images are what was asked", last.name, problem)


def _image_problems(evidence: Evidence, job: Version) -> Iterator[str]:
    spec, recipe, images = job.object["spec"], status(job).get("parameters") or {}, status(job).get("images", [])
    for asked, field in (("seed", "seed"), ("numInferenceSteps", "numInferenceSteps"), ("numImages", "numImages")):
        if asked in spec and recipe.get(field) != spec[asked]:
            yield f"{asked} {spec[asked]} was asked for, {recipe.get(field)} was run"
    if [image["index"] for image in images] != list(range(spec.get("numImages", 1))):
        yield f"its images are {[image['index'] for image in images]}, not {spec.get('numImages', 1)}"
    for image in images:
        key = f"{evidence.prefix}/{evidence.namespace}/{job.uid}/{image['index']}.png"
        data = evidence.stored.get(key)
        if image["uri"] != f"s3://{evidence.bucket}/{key}":
            yield f"image {image['index']} lies at {image['uri']}"
        elif data is None:
            yield f"image {image['index']} is not in storage"
        elif (hashlib.sha256(data).hexdigest(), len(data)) != (image["sha256"], image["bytes"]):
            yield f"image {image['index']} in storage is not the one that the status names"
        elif not _shows(data, spec, recipe, image):
            yield f"image {image['index']} does not show what its recipe gives"


def _shows(data: bytes, spec: Object, recipe: Object, image: Object) -> bool:
    with Image.open(io.BytesIO(data)) as picture:
        size, rgb = picture.size, picture.convert("RGB").tobytes()
    expected = pixels(
        spec["prompt"],
        recipe.get("negativePrompt"),
        recipe["seed"] + image["index"],
        recipe["numInferenceSteps"],
        recipe["guidanceScale"],
        *size,
    )
    same = rgb == expected if recipe.get("deterministic") else alike(rgb, expected)
    return same and size == (image["width"], image["height"]) and image["seed"] == recipe["seed"] + image["index"]


# What is left.


def no_image_is_left_over(evidence: Evidence) -> Iterator[Violation]:
    """Storage holds images of known jobs only, and none of a job that was deleted with its images."""
    for key in sorted(evidence.kept):
        uid = key.removeprefix(f"{evidence.prefix}/{evidence.namespace}/").partition("/")[0]
        versions = evidence.jobs.get(uid)
        if versions is None:
            yield Violation("no image is left over", key, "it belongs to no job")
        elif _goes_with_its_images(versions[-1]):
            yield Violation("no image is left over", versions[-1].name, f"{key} stays after its job")


def nothing_remains(evidence: Evidence) -> Iterator[Violation]:
    """After models and jobs are deleted, no batch/v1 Job, Pod, Lease or process of theirs is left."""
    for what in evidence.remains:
        yield Violation("nothing remains", what, "it is left after everything was taken down")


def memory_does_not_grow(evidence: Evidence) -> Iterator[Violation]:
    """No process holds more than the design allows, nor much more at its end than when a quarter was done."""
    processes: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for sample in evidence.memory:
        processes[sample.part, sample.pid].append((sample.finished, sample.bytes))
    for (part, pid), samples in processes.items():
        subject = f"{part} (process {pid})"
        if (most := max(held for _, held in samples)) > MOST_MEMORY:
            yield Violation("memory does not grow", subject, f"it held {most >> 20} MiB")
        first, last = samples[0][0], samples[-1][0]
        if last - first < LEAST_JOBS:
            continue
        quarter = next(held for finished, held in samples if finished >= first + (last - first) / 4)
        if samples[-1][1] > quarter * GROWTH + SLACK:
            growth = f"from {quarter >> 20} to {samples[-1][1] >> 20} MiB over {last - first} jobs"
            yield Violation("memory does not grow", subject, f"it grew {growth}")


LAWS: tuple[Law, ...] = (
    each_accepted_job_ends,
    no_end_is_left,
    only_who_was_asked_is_cancelled,
    failures_have_a_cause,
    only_the_guilty_fail,
    others_end_as_fast,
    each_order_is_one_job,
    attempts_are_counted,
    only_lost_jobs_are_bound_again,
    jobs_are_bound_to_workers,
    results_do_not_change,
    images_are_what_was_asked,
    no_image_is_left_over,
    nothing_remains,
    memory_does_not_grow,
)


def _goes_with_its_images(version: Version) -> bool:
    return bool(version.object["spec"].get("deletionPolicy") == "Delete")
