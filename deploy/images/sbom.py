"""Lists what an image holds, as CycloneDX 1.6: Python, its distributions and Debian packages. Runs inside the image.

It asks nothing of the image but its Python, so that the list is of what is there, not of what was asked for.
``cyclonedx-bom`` lists distributions of Python alone, and syft would be one more program to build (docs/adr/0017).
"""

import datetime as dt
import json
import platform
import re
import sys
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]

DPKG_STATUS = Path("/var/lib/dpkg/status")
OS_RELEASE = Path("/etc/os-release")


def interpreter() -> Component:
    """Return the component of Python itself: an official base image has no package of it."""
    version = platform.python_version()
    purl = f"pkg:generic/python@{version}"
    return {"type": "application", "bom-ref": purl, "name": "python", "version": version, "purl": purl}


def python_components() -> list[Component]:
    """Return a component for each Python distribution of this environment and of the base image's Python."""
    found: dict[str, Component] = {}
    base = f"{sys.base_prefix}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    for distribution in metadata.distributions(path=[*sys.path, base]):
        about = distribution.metadata
        name = re.sub(r"[-_.]+", "-", about["Name"]).lower()
        purl = f"pkg:pypi/{name}@{quote(distribution.version)}"
        component: Component = {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": distribution.version,
            "purl": purl,
        }
        if expression := about.get("License-Expression"):
            component["licenses"] = [{"expression": expression}]
        elif licence := (about.get("License") or "").strip().split("\n")[0]:
            component["licenses"] = [{"license": {"name": licence}}]
        found.setdefault(purl, component)
    return list(found.values())


def debian_components() -> list[Component]:
    """Return a component for each installed Debian package, or none where the base image is no Debian."""
    if not DPKG_STATUS.exists():
        return []
    release = dict(line.split("=", 1) for line in OS_RELEASE.read_text().splitlines() if "=" in line)
    system, version = (release.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    components = []
    for block in DPKG_STATUS.read_text().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, number, machine = fields["Package"], fields["Version"], fields["Architecture"]
        purl = f"pkg:deb/{system}/{name}@{quote(number)}?arch={machine}&distro={system}-{version}"
        components.append({"type": "library", "bom-ref": purl, "name": name, "version": number, "purl": purl})
    return components


def bill(image: str, version: str) -> dict[str, Any]:
    """Return the whole document."""
    components = sorted([interpreter(), *python_components(), *debian_components()], key=lambda c: c["bom-ref"])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "component": {"type": "container", "bom-ref": image, "name": image, "version": version},
        },
        "components": components,
    }


if __name__ == "__main__":
    json.dump(bill(*sys.argv[1:3]), sys.stdout, indent=1)
    sys.stdout.write("\n")
