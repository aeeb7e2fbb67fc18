"""A job's images are known by their keys, and nothing else passes for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.image_keys import image_key, input_key, is_image_key_of

words = st.text("abc-0123", min_size=1, max_size=8)
prefixes = st.lists(words, max_size=3).map("/".join)


@given(prefix=prefixes, namespace=words, uid=words, index=st.integers(0, 15))
def test_a_key_is_the_jobs_own_under_any_prefix(prefix: str, namespace: str, uid: str, index: int) -> None:
    key = image_key(prefix, namespace, uid, index)
    assert is_image_key_of(key, namespace, uid, index)
    assert not is_image_key_of(key, namespace, uid + "x", index)
    assert not is_image_key_of(key, namespace + "x", uid, index)
    assert not is_image_key_of(key, namespace, uid, index + 1)


@pytest.mark.parametrize(
    "key",
    [
        "ns/other/0.png/../../../ns/uid/0.png",
        "../ns/uid/0.png",
        "./ns/uid/0.png",
        "ns/uid/0.png/",
        "ns/uid/00.png",
        "xns/uid/0.png",
        "uid/0.png",
        "0.png",
        "",
    ],
)
def test_what_only_looks_like_one_is_none(key: str) -> None:
    assert not is_image_key_of(key, "ns", "uid", 0)


def test_an_input_lies_under_its_namespace_by_its_hash_and_nowhere_else() -> None:
    digest = "0123456789abcdef" * 4
    assert input_key("a/b/", "ns", digest) == f"a/b/ns/inputs/{digest}"
    assert input_key("", "ns", digest) == f"ns/inputs/{digest}"
    for wrong in ("", digest[1:], digest.upper(), digest + "\n", "../" + digest[3:], digest + "/x", "https://a/b"):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            input_key("p", "ns", wrong)
