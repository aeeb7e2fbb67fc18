"""A secret does not come out, however a library writes it."""

from __future__ import annotations

import base64
import json
import logging
import re
import shlex
from collections.abc import Callable
from html import escape
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.runtime.logs import JsonFormatter

SECRETS = [
    "hf_fAkeToken123",
    'with "quotes", \\ and \'',
    "sl/ash+plus=and space",
    "<less & more>",
    "übergeheim🦊",
    "line\nbreak\tand tab",
    "long/" + "aB3+" * 30,
]

WRITTEN: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "repr": repr,
    "repr of bytes": lambda secret: repr(secret.encode()),
    "header": lambda secret: f"Authorization: Bearer {secret}",
    "repr of a header": lambda secret: repr({"Authorization": f"Bearer {secret}"}),
    "JSON": json.dumps,
    "JSON, not escaped": lambda secret: json.dumps(secret, ensure_ascii=False),
    "path of a URL": quote,
    "URL": lambda secret: quote(secret, safe=""),
    "URL, small letters": lambda secret: re.sub("%..", lambda found: found[0].lower(), quote(secret, safe="")),
    "form": quote_plus,
    "HTML": escape,
    "XML": lambda secret: escape(secret, quote=False),
    "ASCII": ascii,
    "query": lambda secret: urlencode({"token": secret}),
    "JSON of Go": lambda secret: re.sub(
        "[<>&]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(secret, ensure_ascii=False)
    ),
    "JSON with escaped slashes": lambda secret: json.dumps(secret).replace("/", "\\/"),
    "URL in a URL": lambda secret: quote(quote(secret, safe=""), safe=""),
    "URL in a URL, small letters": lambda secret: re.sub(
        "%(25)?..", lambda found: found[0].lower(), quote(quote(secret, safe=""), safe="")
    ),
    "form in a URL": lambda secret: quote(quote_plus(secret), safe=""),
    "form in a form": lambda secret: quote_plus(quote_plus(secret)),
    "path of a URL in a path": lambda secret: quote(quote(secret)),
    "HTML of Go": lambda secret: escape(secret, quote=False).replace('"', "&#34;").replace("'", "&#39;"),
    "attribute of XML": lambda secret: escape(secret, quote=False).replace('"', "&quot;").replace("'", "&apos;"),
    "shell": shlex.quote,
    "hexadecimal": lambda secret: secret.encode().hex(),
    "hexadecimal, capitals": lambda secret: secret.encode().hex().upper(),
    "hexadecimal, apart": lambda secret: secret.encode().hex(":"),
    "Base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "Base64 of URLs": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
    "Base64 in a URL": lambda secret: quote(base64.b64encode(secret.encode()).decode(), safe=""),
    "Base64 in lines": lambda secret: base64.encodebytes(secret.encode()).decode().rstrip("\n"),
    "JSON in JSON": lambda secret: json.dumps(json.dumps(secret)),
    "repr of bytes in JSON": lambda secret: json.dumps(repr(secret.encode())),
    **{
        f"Basic authorization of {user!r}": lambda secret, user=user: base64.b64encode(  # type: ignore[misc]
            f"{user}:{secret}".encode()
        ).decode()
        for user in ("", "u", "me", "you")
    },
}


@pytest.mark.parametrize("newline", ["", "\n", "\r\n", " "], ids=["plain", "newline", "CRLF", "space"])
@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("secret", SECRETS)
def test_no_form_of_a_secret_is_left(secret: str, form: str, newline: str) -> None:
    """Whether the library strips the newline or quotes it too."""
    redactor = Redactor([secret + newline])
    for quoted in (secret, secret + newline):
        text = f"cannot use <{WRITTEN[form](quoted)}>"
        redacted = redactor.redact(text)
        assert "***" in redacted
        assert redacted.startswith("cannot use <")
        assert redacted.endswith(">")
        for other in WRITTEN.values():
            assert other(secret).strip("\"'") not in redacted


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_log_line_holds_no_form_of_it_either_and_stays_json(secret: str, form: str) -> None:
    quoted = WRITTEN[form](secret)
    record = logging.LogRecord("test", logging.INFO, __file__, 1, "cannot use %s", (quoted,), None)
    line = json.loads(JsonFormatter([secret + "\n"]).format(record))
    assert "***" in line["message"]
    assert quoted not in line["message"]


BY_PLACE = [
    ("Authorization: Bearer opaque/token+1= and more", "Authorization: Bearer *** and more"),
    ("{'Proxy-Authorization': 'Basic dTpw'}", "{'Proxy-Authorization': 'Basic ***}"),
    ('{"authorization": "token"}', '{"authorization": "***"}'),
    ("(b'authorization', b'Bearer abc')", "(b'authorization', b'Bearer ***)"),
    (r"GET / HTTP/1.1\nauthorization: Bearer a/b\nAccept: x", r"GET / HTTP/1.1\nauthorization: Bearer ***\nAccept: x"),
    ("at http://user:p%40ss@host:9/path?q=a@b", "at http://***@host:9/path?q=a@b"),
    ("URL('http://user:it's@[::1]:9')", "URL('http://***@[::1]:9')"),
    ("https://ghp_token@host", "https://***@host"),
    (
        "k?X-Amz-Credential=a%2Fb&X-Amz-Expires=9&X-Amz-Signature=0a1b",
        "k?X-Amz-Credential=***&X-Amz-Expires=9&X-Amz-Signature=***",
    ),
    ("token eyJhbGciOiJ9x.eyJzdWIiOiJ9x.c2ln_-b ends", "token *** ends"),
]


@pytest.mark.parametrize(("text", "redacted"), BY_PLACE)
def test_what_is_a_credential_by_its_place_need_not_be_known(text: str, redacted: str) -> None:
    assert Redactor([]).redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "registry.example.com/team/worker@sha256:0a1b",
        "oci://registry/team/worker@sha256:0a1b",
        "s3://bucket/key@1.png and somebody@example.com",
        "the API server refuses this service's authorization of jobs",
        "spec.source: https://huggingface.co/org/model",
        "Bearer of good news: basic needs",
    ],
)
def test_what_looks_like_none_stays(text: str) -> None:
    assert Redactor(["hf_fAkeToken123"]).redact(text) == text


@given(st.text(max_size=200))
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert Redactor(["hf_fAkeToken123", "", "\n"]).redact(text) == text
