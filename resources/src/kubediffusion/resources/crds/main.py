"""``kubediffusion-crds`` writes the CRDs and admission policies to where chart and local control plane take them from.

``--check`` fails when the committed files differ, and ``--apply`` brings the CRDs of a cluster up to date.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import yaml

from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.crds import policies
from kubediffusion.resources.crds.apply import FIELD_MANAGER, apply_definitions
from kubediffusion.resources.crds.definitions import definitions

_HEADER = "# Generated from the typed models of resources/ by `make generate`. Do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """Writes a value that occurs twice twice, as people write it."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def render() -> dict[str, str]:
    """Generate the files: the content of each, by its path below the chart's folder."""
    files = {f"crds/{body['spec']['names']['plural']}.yaml": [body] for body in definitions()}
    files |= {f"files/policies/{name}.yaml": bodies for name, bodies in policies.render().items()}
    return {
        path: _HEADER
        + yaml.dump_all(bodies, Dumper=_Dumper, sort_keys=False, width=120, explicit_start=len(bodies) > 1)
        for path, bodies in files.items()
    }


async def _apply() -> list[str]:
    async with await KubernetesClient.connect(FIELD_MANAGER) as client:
        try:
            return await apply_definitions(client, definitions())
        except KubernetesError as error:
            sys.exit(f"the CRDs cannot be brought up to date: {error}")


def main() -> None:
    """Write the generated files, compare them with ``--check``, or bring a cluster's up to date with ``--apply``."""
    parser = argparse.ArgumentParser(description="Generate the CRDs and admission policies from the typed models.")
    parser.add_argument("chart", type=Path, nargs="?", default=Path("charts/kubediffusion"), help="the chart's folder")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="change nothing; fail where a file differs")
    action.add_argument("--apply", action="store_true", help="write no file; apply to the cluster that has them")
    arguments = parser.parse_args()
    if arguments.apply:
        sys.stdout.writelines(f"{line}\n" for line in asyncio.run(_apply()))
        return
    stale = []
    for name, content in render().items():
        path = arguments.chart / name
        if path.exists() and path.read_text() == content:
            continue
        stale.append(str(path))
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    if arguments.check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make generate` and commit the result")


if __name__ == "__main__":
    main()
