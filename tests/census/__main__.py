"""Runs the census (``python -m census``), each model in a process of its own: one that crashes stops no other."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import diffusers
import transformers

from census import page, registry
from census.probe import Finding, probe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
RECORD = Path(__file__).parent / "record.json"
"""What was found when each row was last run, from which the page is written."""

LIMIT = 300
"""Seconds that a model may take."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the models that are named, or all, and write what was found; return the exit status."""
    parser = argparse.ArgumentParser(description="Run a tiny model of every text-to-image pipeline of diffusers.")
    parser.add_argument("models", nargs="*", help="names of rows; all by default")
    parser.add_argument("--check", action="store_true", help="fail when docs/models.md is not what the record gives")
    options = parser.parse_args(arguments)
    record = read_record()
    if options.check:
        if PAGE.read_text() != page.text(record):
            print(f"{PAGE} is not up to date: make models", file=sys.stderr)  # noqa: T201
            return 1
        return 0
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    for name in options.models or registry.MODELS:
        record[name] = in_a_process(name)
        print(f"{name}: {record[name]}", flush=True)  # noqa: T201
        write(record)
    write(record)
    return 0


def read_record() -> dict[str, Finding]:
    """Return what was found with this version of diffusers, by row; nothing that was found with another."""
    content = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if content.get("diffusers") != diffusers.__version__:
        return {}
    return {name: Finding(**found) for name, found in content["models"].items() if name in registry.MODELS}


def write(record: dict[str, Finding]) -> None:
    """Write the record and the page."""
    models = {name: dataclasses.asdict(record[name]) for name in sorted(record)}
    RECORD.write_text(json.dumps({"diffusers": diffusers.__version__, "models": models}, indent=1) + "\n")
    PAGE.write_text(page.text(record))


def in_a_process(name: str) -> Finding:
    """Run one model in a child of this process, which has imported the libraries already."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "finding.json"
        child = os.fork()
        if child == 0:
            signal.alarm(LIMIT)
            status = 1
            try:
                answer.write_text(json.dumps(dataclasses.asdict(probe(name))))
                status = 0
            except Exception:  # noqa: BLE001 - told, and found by the parent in the status
                traceback.print_exc()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return Finding(**json.loads(answer.read_text()))
        ended = "by its time limit" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else ""
        return Finding(failed=f"the process ended {ended or f'with status {status}'}")


if __name__ == "__main__":
    sys.exit(main())
