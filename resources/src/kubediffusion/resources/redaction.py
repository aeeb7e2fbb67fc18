"""Secrets kept out of texts, in every form in which a library may quote them."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from html import escape
from urllib.parse import quote, quote_plus

REPLACEMENT = "***"

_SHORTEST_PART = 8
"""Characters of a part of a Base64 text that still names a secret; fewer occur by chance."""


_PERCENT = re.compile(r"%[0-9A-F]{2}")

_QUOTE = r"(?:\\*[\"'])?"
_SHAPES = (
    # A header, as it is sent, and as Python or JSON quotes a dictionary of headers. An escaped newline, which is a
    # letter to a boundary of words, may stand before it.
    (
        "uthorization",
        re.compile(
            rf"(?i)(authorization{_QUOTE}\s*[:=,]\s*(?:b(?=[\"']))?{_QUOTE}(?:(?:bearer|basic|negotiate)\s+)?)"
            r"[^\s\"\\,)}>]+"
        ),
    ),
    # What stands before the host of an address, up to the last @ before its path.
    ("://", re.compile(r"(\w://)[^\s/?#\"<>]+(?=@)")),
    # What a signed URL is good for.
    ("X-Amz-", re.compile(r"(X-Amz-(?:Signature|Security-Token|Credential)=)[^&\s\"'<>\\]+")),
    ("Signature=", re.compile(r"(Signature=)[0-9a-f]{64}")),
    # A token of a service account, as of any that is a JSON Web Token.
    ("eyJ", re.compile(r"()eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*")),
)
"""Where credentials stand that no setting holds: a token of a kubeconfig, those that boto3 fetches by itself. Each with
what a text must hold to be looked at, as lines of the log pass here."""


class Redactor:
    """Replaces secrets in texts: as they are, and as Python, JSON, URLs, HTML, Base64 and hexadecimal write them.

    A secret counts with and without the whitespace around it: a file or a Secret often ends with a newline, which some
    libraries strip before they quote it.

    What is a credential by its place is replaced too, whether it is known or not: the value of an ``Authorization``
    header, the user of an address, the signature of a URL, a JSON Web Token.

    Args:
        secrets: The secrets; empty ones are ignored.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        # JSON escapes quotes, backslashes and what is not ASCII. A log line is JSON, and may quote JSON.
        for _ in range(2):
            forms |= {json.dumps(form)[1:-1] for form in forms}
        # Longest first: a shorter one may be a part of it.
        self._forms = sorted(filter(None, forms), key=lambda form: (-len(form), form))

    def redact(self, text: str) -> str:
        """Return a text with ``***`` in place of each secret."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, REPLACEMENT)
        for hint, shape in _SHAPES:
            if hint in text:
                text = shape.sub(rf"\1{REPLACEMENT}", text)
        return text


def _forms(secret: str) -> Iterator[str]:
    if not secret.strip():
        return
    for value in {secret, secret.strip()}:
        yield value
        yield repr(value)[1:-1]
        yield repr(value.encode())[2:-1]
        yield ascii(value)[1:-1]
        yield from _json_forms(value)
        yield from _url_forms(value, times=2)
        yield from _markup_forms(value)
        # What a shell gets in single quotes.
        yield value.replace("'", "'\"'\"'")
        for digits in (value.encode().hex(), value.encode().hex(" "), value.encode().hex(":")):
            yield digits
            yield digits.upper()
        for encoded in set(_base64_forms(value.encode())):
            yield encoded
            yield from _url_forms(encoded, times=1)


def _json_forms(value: str) -> Iterator[str]:
    """Yield a text as JSON holds it: escaped no more than it must be, as Go does it, and with its slashes escaped."""
    plain = json.dumps(value, ensure_ascii=False)[1:-1]
    yield plain
    yield plain.translate({ord(character): f"\\u{ord(character):04x}" for character in "<>&"})
    yield plain.replace("/", "\\/")
    yield json.dumps(value)[1:-1].replace("/", "\\/")


def _url_forms(value: str, times: int) -> Iterator[str]:
    """Yield a text as addresses hold it, encoded up to ``times`` times: an address is often a part of another."""
    once = {quote(value), quote(value, safe=""), quote_plus(value)}
    for encoded in once | {_PERCENT.sub(lambda found: found[0].lower(), encoded) for encoded in once}:
        yield encoded
        if times > 1:
            yield from _url_forms(encoded, times - 1)


def _markup_forms(value: str) -> Iterator[str]:
    """Yield a text as a page or an XML document quotes it: the names of quotation marks differ."""
    yield escape(value, quote=False)
    for double in ("&quot;", "&#34;"):
        for single in ("&#x27;", "&#39;", "&apos;"):
            yield escape(value, quote=False).replace('"', double).replace("'", single)


def _base64_forms(value: bytes) -> Iterator[str]:
    """Yield the whole of it in Base64, and what of it stands in the Base64 of a longer text, as in Basic authorization.

    Three bytes are four characters, so it depends on the bytes before it only by their number modulo three; the
    characters at the ends mix in the bits of the neighbours.
    """
    whole = b64encode(value).decode()
    yield whole
    # As MIME and PEM break lines.
    for width in (76, 64):
        yield "\n".join(whole[start : start + width] for start in range(0, len(whole), width))
    for before in range(3):
        length = before + len(value)
        inner = b64encode(bytes(before) + value)[-(-before * 8 // 6) : length * 8 // 6].decode()
        for part in {inner, inner.translate(str.maketrans("+/", "-_"))}:
            if len(part) >= _SHORTEST_PART:
                yield part
