"""Networks in ``NO_PROXY``, which clusters name there."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from urllib.parse import urlsplit


def in_no_proxy_network(url: str) -> bool:
    """Return whether the address in a URL lies in a network of ``NO_PROXY``, a single address included.

    Python and boto3 compare names and addresses alone: they would take ``10.0.0.0/8``, which curl and Go understand,
    for a name.
    """
    try:
        address = ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:  # a name
        return False
    for entry in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
        with suppress(ValueError):  # an entry that is a name
            if address in ipaddress.ip_network(entry.strip().strip("[]"), strict=False):
                return True
    return False
