"""Names that the parts agree on."""

from __future__ import annotations

import re
import string
import time
import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources import meta
from kubediffusion.resources.generation_job import MAX_IMAGES
from kubediffusion.resources.image_keys import image_key
from kubediffusion.resources.task_ids import new_task_id
from kubediffusion.resources.worker_names import content_hash, worker_job_name

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
POD_SUFFIX = "-abcde"
"""What the Job controller adds."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


def test_a_task_id_is_a_uuid_of_version_7_that_tells_the_time() -> None:
    before = time.time_ns() // 1_000_000
    task = uuid.UUID(new_task_id())
    after = time.time_ns() // 1_000_000
    assert (task.version, task.variant) == (7, uuid.RFC_4122)
    assert before <= task.int >> 80 <= after


def test_task_ids_sort_by_the_time_of_their_making_within_a_millisecond_too() -> None:
    task_ids = [new_task_id() for _ in range(10_000)]
    assert task_ids == sorted(set(task_ids))


def test_a_task_id_is_a_name_that_kubernetes_takes() -> None:
    assert LABEL.fullmatch(new_task_id())


@given(
    st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=meta.MAX_MODEL_NAME),
    json_values,
    st.integers(0, 9999),
)
def test_the_names_of_a_workers_job_and_pod_fit_a_label(model: Any, content: Any, ordinal: Any) -> None:
    name = worker_job_name(model, content_hash(content), ordinal)
    assert LABEL.fullmatch(name + POD_SUFFIX)


@given(json_values)
def test_a_hash_depends_on_the_value_and_not_on_the_order_of_its_keys(content: Any) -> None:
    assert content_hash({"a": content, "b": 1}) == content_hash({"b": 1, "a": content})
    assert content_hash({"a": content}) != content_hash({"b": content})


@given(st.sampled_from(["", "images", "/images/", "a/b"]))
def test_the_keys_of_a_jobs_images_differ_and_lie_in_one_folder(prefix: str) -> None:
    keys = [image_key(prefix, "studio", "uid-1", index) for index in range(MAX_IMAGES)]
    assert len(set(keys)) == MAX_IMAGES
    assert {key.rpartition("/")[0] for key in keys} == {f"{prefix.strip('/')}/studio/uid-1".lstrip("/")}


def test_an_images_key_is_a_function_of_its_job() -> None:
    assert image_key("images", "studio", "uid-1", 0) == "images/studio/uid-1/0.png"
    assert image_key("", "studio", "uid-1", 3) == "studio/uid-1/3.png"
