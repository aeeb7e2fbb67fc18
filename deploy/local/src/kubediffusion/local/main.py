"""``kubediffusion-local``: KubeDiffusion on this machine, behind ``make up`` and ``make demo``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from kubediffusion.local import binaries, demo
from kubediffusion.local.errors import LocalError, PartFailedError
from kubediffusion.local.installation import API_PORT, DEFAULT_MODEL
from kubediffusion.local.layout import MODELS
from kubediffusion.local.progress import say
from kubediffusion.local.service import ServeOptions, Service, serving

CHECK_SECONDS = 1.0

EXAMPLE = """\
apiVersion: kubediffusion.io/v1alpha1
kind: GenerationJob
metadata:
  name: astronaut
spec:
  prompt: {prompt}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says; a failure is a message and exit code 1."""
    parser = argparse.ArgumentParser(prog="kubediffusion-local", description="KubeDiffusion on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build the programs, which up and demo do when needed")
    build.add_argument("purpose", nargs="?", choices=binaries.SETS, default="cluster", help="what for (%(default)s)")
    path = commands.add_parser("path", help="print where a program is, and build it where it is not")
    path.add_argument("program", choices=sorted(name for module in binaries.SETS["tests"] for name in module.programs))
    for name, text in (("up", "serve until Ctrl-C"), ("demo", "generate one image, show how, and stop")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--port", type=_port, default=API_PORT, help="port of the HTTP API (%(default)s)")
        command.add_argument(
            "--model", type=Path, default=MODELS / DEFAULT_MODEL, help="folder of a diffusers pipeline (%(default)s)"
        )
        if name == "demo":
            command.add_argument("--image", type=Path, default=demo.IMAGE, help="where the image goes (%(default)s)")
    options = parser.parse_args(arguments)
    # A terminal that closes and `kill` end it as Ctrl-C does: with everything that it started.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        if options.command == "build":
            binaries.provide(modules=binaries.SETS[options.purpose])
            return
        if options.command == "path":
            sys.stdout.write(f"{binaries.provide(modules=binaries.SETS['tests']).path(options.program)}\n")
            return
        with serving(ServeOptions(options.port, options.model.absolute())) as service:
            if options.command == "demo":
                demo.run(service, options.image.absolute())
            else:
                _stay(service)
    except LocalError as error:
        sys.stderr.write(f"\nkubediffusion-local: {error}\n")
        if isinstance(error, PartFailedError):
            sys.stderr.write("Everything else was stopped. Start again; if that fails too, the log says more.\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped.\n")
        raise SystemExit(128 + signal.SIGINT) from None


def _port(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is no port; choose one from 1 to 65535 with PORT=")
    return int(text)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _stay(service: Service) -> None:
    say(usage(service))
    while True:
        time.sleep(CHECK_SECONDS)
        service.cluster.check()


def usage(service: Service) -> str:
    """Return what a person needs to know to use it, an example for each way in included."""
    body = json.dumps(demo.REQUEST)
    manifest = EXAMPLE.format(prompt=demo.REQUEST["prompt"])
    return f"""
KubeDiffusion serves at {service.url} (API keys are off). Ctrl-C stops everything.

In a browser, a page for people and that of the HTTP interface:
  {service.url}/
  {service.url}/docs

Over HTTP:
  curl -X POST "{service.url}/generate" -H "Content-Type: application/json" \\
    -d '{body}'
  curl -X GET "{service.url}/results/<task_id>"

With the command line of this project:
  export KUBEDIFFUSION_SERVER={service.url}
  .venv/bin/kubediffusion "{demo.REQUEST["prompt"]}" -o astronaut.png

With kubectl:
  export KUBECONFIG={service.cluster.admin}
  export PATH={service.kubectl.parent}:$PATH
  kubectl apply -f - <<EOF
{manifest}EOF
  kubectl get generationjobs --watch
"""
