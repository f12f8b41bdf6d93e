"""A new user's path: start the local head, submit the study, watch it, stop it, submit it again, open the report.

Each command stands in docs/cluster.md; the head is real, with its token on.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import OVERRIDES, REPOSITORY, STUDY, Run, listening
from tests.local_cluster import free_port
from tests.same_tables import assert_same_study, markers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GUIDE = (REPOSITORY / "docs" / "cluster.md").read_text()
MORE = shlex.join(OVERRIDES)
"""A little longer than the preset, so that there is something to stop."""


class Head:
    """What `cluster/local start` left running, and the environment that it told."""

    def __init__(self, home: Path) -> None:
        # Without the variables of tests, which a user's shell does not have; .venv as `activate` puts it.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "PATH": path,
        }
        self.environment["RAY_AUTH_TOKEN_PATH"] = str(home / "token")
        ports = " ".join(f"--{name}port={free_port()}" for name in ("", "dashboard-", "metrics-"))
        self.told = self.run("cluster/local start", ports).stdout
        exported = re.search(r"export (.*)", self.told)
        assert exported, self.told
        self.environment |= dict(pair.split("=", 1) for pair in exported[1].split())
        self.token = (home / "token").read_text()

    def run(
        self, line: str, more: str = "", job: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of the guide to its end."""
        given = {**self.environment, **environment}
        return subprocess.run(
            documented(line, more, job), shell=True, executable="/bin/bash", cwd=REPOSITORY, env=given, text=True,
            capture_output=True, timeout=900,
        )  # fmt: skip

    @property
    def process(self) -> psutil.Process:
        line = [REPOSITORY / "cluster" / "local", "status"]
        told = subprocess.run(line, env=self.environment, capture_output=True, text=True).stdout
        found = re.search(r"^pid\s+(\d+)", told, re.MULTILINE)
        assert found
        return psutil.Process(int(found[1]))


class Streamed:
    """A command of the guide that runs on: its lines, each with whether the study was done when it came."""

    def __init__(self, head: Head, root: Path, line: str, more: str = "", job: str = "") -> None:
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", f"exec {documented(line, more, job)}"], cwd=REPOSITORY, env=head.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.lines: list[tuple[float, bool, str]] = []
        self._root = root
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), (self._root / "report.html").exists(), line))

    def end(self, seconds: float) -> int:
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    @property
    def text(self) -> str:
        return "".join(line for *_, line in self.lines)

    def progress(self) -> list[tuple[float, str]]:
        """(when, stage) of the lines that told of a stage while the study was not done."""
        found = [(at, re.match(r"(\w+) +\d+/\d+ ", line)) for at, done, line in self.lines if not done]
        return [(at, match[1]) for at, match in found if match]


def documented(line: str, more: str = "", job: str = "") -> str:
    """The line of the guide, which must be there, as a user completes it: with `more` behind it, JOB filled in."""
    assert re.search(rf"^{re.escape(line)} *(#.*)?$", GUIDE, re.MULTILINE), f"docs/cluster.md lacks {line!r}"
    return f"{line.replace('JOB', job)} {more}"


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    started = Head(tmp_path)
    yield started
    started.run("cluster/local stop")


SUBMIT = f"ray job submit --working-dir . -- python jobs/grid.py {STUDY} --storage ~/studies"
WATCH = f"python jobs/status.py {STUDY} --storage ~/studies --watch"


def test_a_study_is_submitted_watched_stopped_and_submitted_again(
    head: Head, tmp_path: Path, whole: Run
) -> None:
    root = tmp_path / "studies" / STUDY
    # Strangers are kept out, the token is nowhere to be read, and no other machine comes near.
    assert head.token not in head.told
    stranger = head.run("ray job list", RAY_AUTH_MODE="disabled")
    assert stranger.returncode != 0 and "token authentication is enabled" in stranger.stdout + stranger.stderr
    assert head.run("ray job list").returncode == 0
    assert reachable(head) == set()

    # What is wrong is told at once, with the job's own exit code.
    wrong = head.run(SUBMIT, "task.cards=99")
    assert wrong.returncode != 0
    assert "task.cards" in wrong.stdout + wrong.stderr and "exit code 2" in wrong.stdout + wrong.stderr

    # Submitted: its log streams, it is on the list, and it can be watched from its directory.
    submitted = Streamed(head, root, SUBMIT, MORE)
    wait_for(lambda: len(markers(root)) >= 3, submitted)
    job = re.search(r"raysubmit_\w+", submitted.text)
    assert job, submitted.text
    listed = head.run("ray job list")
    told = listed.stdout + listed.stderr
    status = re.search(rf"submission_id='{job[0]}'.*?status=<JobStatus\.(\w+)", told, re.DOTALL)
    assert status and status[1] == "RUNNING", told
    logs = Streamed(head, root, "ray job logs -f JOB", job=job[0])
    wait_for(lambda: "sft" in logs.text, submitted)
    assert reachable(head) <= {"ray::RayTrainWorker"}, (
        "torch's rendezvous binds every interface (docs/security.md)"
    )

    # The driver is light: what works hard works in workers of the cluster.
    driver = next(p for p in psutil.process_iter() if is_driver(p, root.parent))
    assert driver.memory_full_info().pss < 1 << 30

    # Stopped, it leaves what can be resumed.
    assert head.run("ray job stop JOB", job=job[0]).returncode == 0
    logs.end(120)
    submitted.end(120)
    assert "sft" in submitted.text and "stopped" in submitted.text, submitted.text[-4000:]
    assert not (root / "report.html").exists()
    done = {path: path.stat().st_mtime_ns for path in markers(root)}

    # Submitted again it goes on, tells how far it is while it runs, and the watch ends with it.
    again, watch = Streamed(head, root, SUBMIT, MORE), Streamed(head, root, WATCH)
    assert again.end(900) == 0, again.text[-4000:]
    assert watch.end(120) == 0 and "sft" in watch.text
    moments = submitted.progress() + again.progress()
    assert {stage for _, stage in moments} >= {"sft", "rl", "edit"}, submitted.text + again.text
    assert moments[-1][0] - moments[0][0] > 2, "it told of its progress bit by bit"
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished unit was done again"
    assert "succeeded" in again.text
    assert "<html" in (root / "report.html").read_text()[:1000]
    assert_same_study(root, whole.root)
    check_events(root / "logs" / "events.jsonl")

    # Stopped, nothing of the head is left.
    everything = [head.process, *head.process.children(recursive=True)]
    assert head.run("cluster/local stop").returncode == 0
    psutil.wait_procs(everything, timeout=10)
    assert not [process for process in everything if process.is_running()]

    # No secret in what a study leaves.
    for path in root.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".yaml", ".html", ".log", ".jsonl", ".txt"):
            assert head.token not in path.read_text(errors="replace"), path


def check_events(path: Path) -> None:
    """Every line names study, stage and cell, and the lines tell what happened: begun, resumed, done."""
    events: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    assert {event["study"] for event in events} == {STUDY}
    assert all(event["stage"] and isinstance(event["cell"], str) for event in events)
    of_units = [
        event for event in events if event["stage"] in ("rl", "control", "probe", "edit") and event["cell"]
    ]
    assert {event["stage"] for event in of_units} == {"rl", "control", "probe", "edit"}
    assert all("seed=" in event["cell"] or event["stage"] in ("probe", "edit") for event in of_units)
    study = [event["event"] for event in events if event["stage"] == "study"]
    assert study == ["started", "resumed", "done"]
    rl = [event["event"] for event in of_units if event["stage"] == "rl"]
    assert rl.count("done") == 2 and rl.count("failed") == 0


def reachable(head: Head) -> set[str]:
    """Of the head and all that it started: who accepts connections from other machines."""
    found = listening(head.process)
    assert found
    return {
        title.partition(".")[0]
        for address, title in found
        if not ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback
    }


def is_driver(process: psutil.Process, storage: Path) -> bool:
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return "jobs/grid.py" in line and str(storage) in line and "python" in Path(line[0]).name


def wait_for(condition: object, job: Streamed) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline and job.process.poll() is None, job.text[-4000:]
        time.sleep(0.2)
