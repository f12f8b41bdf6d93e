"""A new user's path: start the local head, submit the study, watch it, stop it, submit it again, open the report.

Each command as docs/cluster.md has it; the head is real, with its token on.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import OVERRIDES, REPOSITORY, STUDY, Run
from tests.local_cluster import free_port
from tests.same_tables import assert_same_study, markers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

RAY = Path(sys.executable).with_name("ray")


class Head:
    """What `cluster/local start` left running, and the environment that it told."""

    def __init__(self, home: Path) -> None:
        self._state = {**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
        self._state["RAY_AUTH_TOKEN_PATH"] = str(home / "token")
        ports = [f"--{name}port={free_port()}" for name in ("", "dashboard-", "metrics-")]
        self.told = self.run("cluster/local", "start", *ports).stdout
        exported = re.search(r"export (.*)", self.told)
        assert exported, self.told
        told = dict(pair.split("=", 1) for pair in exported[1].split())
        # Without the variables of tests, which a user's shell does not have.
        self.environment = {**self._state, **told}
        self.token = (home / "token").read_text()

    def run(self, *line: str, **more: str) -> subprocess.CompletedProcess[str]:
        given = {**getattr(self, "environment", self._state), **more}
        return subprocess.run(line, cwd=REPOSITORY, env=given, capture_output=True, text=True, timeout=600)

    def submit(self, *line: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        flags = [] if wait else ["--no-wait"]
        return self.run(str(RAY), "job", "submit", "--working-dir", ".", *flags, "--", *line)

    @property
    def pid(self) -> int:
        found = re.search(r"^pid\s+(\d+)", self.run("cluster/local", "status").stdout, re.MULTILINE)
        assert found
        return int(found[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    started = Head(tmp_path)
    yield started
    started.run("cluster/local", "stop")


def study(storage: Path) -> list[str]:
    return ["python", "jobs/grid.py", STUDY, *OVERRIDES, "--storage", str(storage)]


def test_a_study_is_submitted_watched_stopped_and_submitted_again(
    head: Head, tmp_path: Path, whole: Run
) -> None:
    storage = tmp_path / "studies"
    # Strangers are kept out, and the token is nowhere to be read.
    assert head.token not in head.told
    stranger = head.run(str(RAY), "job", "list", RAY_AUTH_MODE="disabled")
    assert stranger.returncode != 0 and "token authentication is enabled" in stranger.stdout + stranger.stderr

    # What is wrong is told at once, with the job's own exit code.
    wrong = head.submit("python", "jobs/grid.py", STUDY, "task.cards=99")
    assert wrong.returncode != 0
    assert "task.cards" in wrong.stdout + wrong.stderr and "exit code 2" in wrong.stdout + wrong.stderr

    # Submitted; it can be watched from its directory, and its log streams.
    submitted = head.submit(*study(storage), wait=False)
    job = re.search(r"raysubmit_\w+", submitted.stdout)
    assert job, submitted.stdout + submitted.stderr
    logs = subprocess.Popen(
        [str(RAY), "job", "logs", "-f", job[0]], cwd=REPOSITORY, env=head.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(lambda: len(markers(storage / STUDY)) >= 3)
    shown = head.run(sys.executable, "jobs/status.py", STUDY, "--storage", str(storage), "--json")
    stages = {stage["name"]: stage for stage in json.loads(shown.stdout)["stages"]}
    assert stages["base"]["done"] == 1 and stages["rl"]["done"] < stages["rl"]["units"]

    # The driver is light: what works hard works in workers of the cluster.
    driver = next(p for p in psutil.process_iter() if is_driver(p, storage))
    assert driver.memory_full_info().pss < 1 << 30

    # Stopped, it leaves what can be resumed; submitted again, it goes on.
    assert head.run(str(RAY), "job", "stop", job[0]).returncode == 0
    logs.send_signal(signal.SIGINT)
    streamed = logs.communicate()[0]
    assert "sft" in streamed
    done = {path: path.stat().st_mtime_ns for path in markers(storage / STUDY)}
    again = head.submit(*study(storage))
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished unit was done again"
    assert "succeeded" in again.stdout
    assert (storage / STUDY / "report.html").exists()
    assert_same_study(storage / STUDY, whole.root)

    # Stopped, nothing of the head is left.
    everything = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    assert head.run("cluster/local", "stop").returncode == 0
    psutil.wait_procs(everything, timeout=10)
    assert not [process for process in everything if process.is_running()]

    # No secret in what a study leaves.
    for path in (storage / STUDY).rglob("*"):
        if path.is_file() and path.suffix in (".json", ".yaml", ".html", ".log", ".jsonl", ".txt"):
            assert head.token not in path.read_text(errors="replace"), path


def is_driver(process: psutil.Process, storage: Path) -> bool:
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return "jobs/grid.py" in line and str(storage) in line and "python" in Path(line[0]).name


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
