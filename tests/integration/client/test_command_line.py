"""The command line as people and scripts run it: a process of its own, against a real API."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from integration.api.api_kit import Api, Site, Stage, free_port, png
from integration.client.conftest import REFUSED, UNDRAWN
from kubediffusion.local.testing import wait_for

BIN = Path(sys.executable).parent


class CommandLine:
    """Runs the program in a folder of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.environment = {"PATH": f"{folder}:{BIN}:/usr/bin:/bin", "KUBEDIFFUSION_SERVER": url, "LANG": "C.UTF-8"}

    def start(self, *arguments: str, program: str = "kubediffusion", **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen([BIN / program, *arguments], env=self.environment, cwd=self.folder, **pipes)

    def run(self, *arguments: str, program: str = "kubediffusion") -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        process = self.start(*arguments, program=program)
        out, err = process.communicate(timeout=60)
        assert b"Traceback" not in err, err.decode()
        return process.returncode, out.decode(errors="replace"), err.decode()

    def ok(self, *arguments: str) -> str:
        code, out, err = self.run(*arguments)
        assert (code, err) == (0, "")
        return out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--output", "json"))


@pytest.fixture
def line(api: Api, tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, api.url)


@pytest.mark.parametrize("program", ["kubediffusion", "kubectl-diffuse"])
def test_a_prompt_is_enough(line: CommandLine, program: str) -> None:
    assert line.run("a fox in the snow", program=program) == (0, "a-fox-in-the-snow.png\n", "")
    assert (line.folder / "a-fox-in-the-snow.png").read_bytes() == png()
    # What is there is not overwritten, unless it is named.
    assert line.ok("a fox in the snow") == "a-fox-in-the-snow-2.png\n"


def test_options_are_fields_of_the_job(line: CommandLine) -> None:
    made = line.json(
        "a fox", "-o", "fox.jpg", "--model", "tiny", "--seed", "7", "--steps", "9", "--guidance", "3", "--count", "2",
        "--size", "64x128", "--negative", "dogs", "--set", "spec.acceleration.featureCaching.interval=3",
        "--set", "priority=2",
    )  # fmt: skip
    assert made["files"] == ["fox-0.jpg", "fox-1.jpg"]
    with Image.open(line.folder / "fox-1.jpg") as second:
        assert (second.format, second.size) == ("JPEG", (24, 24))
    asked = {name: value for name, value in made["request"].items() if value is not None}
    assert asked.items() >= {
        "prompt": "a fox", "model": "tiny", "seed": 7, "num_inference_steps": 9, "guidance_scale": 3.0, "num_images": 2,
        "width": 64, "height": 128, "negative_prompt": "dogs", "priority": 2,
    }.items()  # fmt: skip
    assert asked["acceleration"]["feature_caching"] == {"interval": 3}


def test_a_picture_goes_to_standard_output_or_into_a_folder(line: CommandLine) -> None:
    process = line.start("a fox", "-o", "-")
    assert process.communicate(timeout=60)[0] == png()
    (line.folder / "out").mkdir()
    assert line.ok("a fox", "-o", "out", "--count", "2") == "out/a-fox-0.png\nout/a-fox-1.png\n"


def test_a_job_is_shown_explained_opened_and_drawn_again(line: CommandLine) -> None:
    name = line.ok("shown", "--no-wait", "--steps", "9").strip()
    assert line.ok("wait", name) == f"{name}\n"
    assert line.run("cancel", name) == (8, "", "error: The job has finished already: it is Succeeded.\n")
    assert line.ok("wait", name, "-o", "shown.png") == "shown.png\n"
    [head, row] = line.ok("get", name).splitlines()
    assert head.split() == ["NAME", "MODEL", "PHASE", "PROGRESS", "PLACE", "AGE", "PROMPT"]
    assert row.split()[:2] == [name, "Succeeded"]
    assert name in line.ok("list", "--limit", "5")
    whole = line.json("get", name)
    assert yaml.safe_load(line.ok("get", name, "--output", "yaml")) == whole
    assert whole["parameters"]["seed"] == 7
    explained = line.ok("explain", name)
    assert re.search(r"^recipe +1 of 25 steps, guidance 9, seed 7$", explained, re.MULTILINE)
    assert re.search(r"^image 0 +16x16", explained, re.MULTILINE)
    assert {"about": "prompt", "text": "shown"} in line.json("explain", name)
    opener = line.folder / "xdg-open"
    opener.write_text('#!/bin/sh\ncp "$1" opened.png\n')
    opener.chmod(0o755)
    line.ok("open", name)
    wait_for("the picture is opened", lambda: (line.folder / "opened.png").exists())
    assert line.json("again", name)["request"]["seed"] == 7
    other = line.json("again", name, "--seed", "8", "--steps", "3", "--set", "priority=1")["request"]
    assert (other["prompt"], other["seed"], other["num_inference_steps"], other["priority"]) == ("shown", 8, 3, 1)
    assert line.json("again", name, "--seed", "new")["request"]["seed"] not in {7, None}


def test_a_waiting_job_says_why(line: CommandLine, client_stage: Stage, api: Api) -> None:
    name = line.ok(f"{UNDRAWN} soon", "--no-wait").strip()
    client_stage.waits(name, "WorkersBusy", "ready workers of model tiny: 1, all at capacity")
    wait_for("the reason", lambda: api.http.get(f"/v1/jobs/{name}").json()["waiting"])
    assert re.search(
        r"^waits +place \d+ in the queue: ready workers of model tiny: 1, all at capacity \(WorkersBusy\)$",
        line.ok("explain", name),
        re.MULTILINE,
    )
    assert line.run("wait", name, "--timeout", "0.1")[0] == 6
    assert line.ok("cancel", name) == f"{name}\n"
    code, _, words = line.run("wait", name, "--timeout", "30")
    assert (code, words) == (7, f"error: job {name} has been cancelled\n")
    # It is cancelled, as was asked for.
    assert line.ok("cancel", name) == f"{name}\n"


def test_a_bar_shows_the_place_the_reason_and_the_steps(line: CommandLine, client_stage: Stage, api: Api) -> None:
    """On a terminal; its far end is read here."""
    far, near = pty.openpty()
    prompt = f"{UNDRAWN} with a bar {uuid.uuid4()}"
    line.environment |= {"TERM": "xterm", "COLUMNS": "200"}
    process = line.start(prompt, "-o", "bar.png", stderr=near)
    os.close(near)
    shown = Terminal(far)
    name = wait_for("the job", lambda: _named(api, prompt))
    client_stage.waits(name, "WorkerStarting", "a worker is loading model tiny")
    shown.until("in the queue: a worker is loading model tiny (WorkerStarting)")
    client_stage.bind(name)
    client_stage.run(name, 12, 25)
    shown.until("12/25")
    client_stage.succeed(name, png())
    assert process.communicate(timeout=30)[0] == b"bar.png\n"
    os.close(far)


class Terminal:
    """The far end of a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen = ""

    def until(self, words: str) -> None:
        while words not in self._seen:
            self._seen += os.read(self._descriptor, 65536).decode(errors="replace")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a fox", "--steps", "100000"), 2, "error: --steps (num_inference_steps): "),
        (("a fox", "--size", "wide"), 2, "error: --size: 'wide' is no size; write 512x768"),
        (("a fox", "--set", "spec.numImagez=2"), 2, "did you mean 'num_images'"),
        (("a fox", "--set", "seed"), 2, "write field=value"),
        (("a fox", "-o", "fox.gif"), 2, "error: -o: 'fox.gif' ends with no format"),
        (("a fox", "-o", "none/fox.png"), 2, "there is no folder 'none'"),
        (("a fox", "-o", "-", "--count", "2"), 2, "2 images do not fit"),
        (("a fox", "--seed", "x"), 2, "--seed"),
        (("a fox", "--model", "none"), 2, "error: --model: "),
        (("lst",), 2, "did you mean 'list'"),
        (("list", "--phase", "Lost"), 2, "phase"),
        (("get", "no-such-job"), 3, "error: Task ID not found."),
        (("explain", "../../secrets"), 3, "error: "),
        ((f"{REFUSED} at all",), 1, "the sampler cannot do this; take another (InvalidJob)"),
        ((f"{UNDRAWN} in time", "--timeout", "0.5"), 6, "has not finished after 0.5 s"),
    ],
)
def test_what_goes_wrong_has_words_and_a_number(
    line: CommandLine, arguments: tuple[str, ...], code: int, words: str
) -> None:
    got, out, err = line.run(*arguments)
    assert (got, out) == (code, "")
    assert words in " ".join(err.split())


def test_nothing_is_generated_of_what_cannot_be_saved(line: CommandLine, api: Api) -> None:
    prompt = f"unsaved {uuid.uuid4()}"
    assert line.run(prompt, "-o", "none/fox.png")[0] == 2
    assert not _named(api, prompt)


def test_errors_are_read_by_programs(line: CommandLine) -> None:
    code, out, err = line.run("a fox", "--steps", "100000", "--output", "json")
    error = json.loads(err)["error"]
    assert (code, out, error["type"], error["field"]) == (2, "", "InvalidRequestError", "num_inference_steps")
    assert (error["exit_code"], error["status"], bool(error["reason"]), bool(error["remedy"])) == (2, 422, True, True)


def test_keys_and_servers_that_are_not_there(line: CommandLine, client_site: Site, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "alice").write_text("secret")
    line.environment["KUBEDIFFUSION_SERVER"] = client_site.start(API_KEYS_FILE=str(keys)).url
    code, _, err = line.run("list")
    assert code == 4
    assert "hint: give the API key in KUBEDIFFUSION_API_KEY" in err
    line.environment["KUBEDIFFUSION_API_KEY"] = "secret"
    line.ok("list")
    del line.environment["KUBEDIFFUSION_API_KEY"]
    code, _, err = line.run("list", "--server", "file:///etc")
    assert (code, "no address" in err) == (2, True)


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("options", [(), ("--no-cancel",)])
def test_a_signal_cancels_what_was_started(
    line: CommandLine, api: Api, ending: signal.Signals, code: int, options: tuple[str, ...]
) -> None:
    prompt = f"{UNDRAWN}: stopped {uuid.uuid4()}"
    process = line.start(prompt, *options)
    name = wait_for("the job", lambda: _named(api, prompt))
    wait_for("it waits", lambda: api.metric("kubediffusion_api_waiting_requests") > 0)
    process.send_signal(ending)
    _, words = process.communicate(timeout=30)
    assert process.returncode == code
    if options:
        assert words.decode() == f"job {name} goes on; `kubediffusion cancel {name}` ends it\n"
        assert not api.http.get(f"/v1/jobs/{name}").json()["cancel_requested"]
        line.ok("cancel", name)
    else:
        assert words.decode() == f"job {name} has been cancelled\n"
    api.wait_phase(name, "Cancelled")


def test_models_and_lists_for_people_and_programs(line: CommandLine) -> None:
    [head, row] = line.ok("models").splitlines()
    assert head.split()[:3] == ["NAME", "DEFAULT", "AVAILABLE"]
    assert row.split()[:3] == ["tiny", "yes", "yes"]
    [model] = line.json("models")
    assert (model["name"], model["limits"]["num_images"]) == ("tiny", 4)
    names = [line.ok(f"{UNDRAWN} listed", "--no-wait").strip() for _ in range(3)]
    pending = line.json("list", "--limit", "0", "--phase", "pending")
    assert set(names) <= {job["name"] for job in pending}
    assert line.json("list", "--limit", "2", "--phase", "Pending") == pending[:2]
    assert line.json("list", "--model", "tiny", "--limit", "0")
    line.ok("cancel", *names)


def test_whoever_has_read_enough_may_go(line: CommandLine) -> None:
    first = line.start("list", "--limit", "0")
    assert first.stdout is not None
    first.stdout.close()
    assert first.stderr is not None
    assert first.stderr.read() == b""
    assert first.wait(30) == 0
    first.stderr.close()


@pytest.mark.parametrize(
    ("shell", "complete", "found"),
    [("bash", "again --mo", "--model"), ("bash", "generate fox --model t", "tiny"), ("bash", "exp", "explain")],
)
def test_shells_complete_it(line: CommandLine, shell: str, complete: str, found: str) -> None:
    words = ["kubediffusion", *complete.split()]
    line.environment |= {
        "_KUBEDIFFUSION_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    assert found in line.run()[1].split()


@pytest.mark.parametrize("command", ["models", "a fox"])
def test_nobody_there_is_said_at_once_or_after_tries(line: CommandLine, command: str) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    code, _, err = line.run(command, "--server", nobody, "--retry", "0")
    assert (code, "hint: is the address right?" in err, "tries again" in err) == (5, True, False)
    code, _, err = line.run(command, "--server", nobody, "--retry", "1")
    assert (code, f"nobody answers at {nobody}" in err, "tries again in 1 s" in err) == (5, True, True)


def test_each_of_several_jobs_is_waited_for(line: CommandLine) -> None:
    failing, drawn = (line.ok(prompt, "--no-wait").strip() for prompt in (f"{REFUSED} first", "drawn second"))
    code, out, err = line.run("wait", failing, "no-such-job", drawn)
    assert (code, out) == (1, f"{drawn}\n")
    assert err.count("error: ") == 2


def _named(api: Api, prompt: str) -> str | None:
    jobs = api.http.get("/v1/jobs", params={"limit": 500}).json()["jobs"]
    return next((job["name"] for job in jobs if job["prompt"] == prompt), None)
