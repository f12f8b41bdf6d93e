"""A study whose storage is a URI on a filesystem that fails now and then: killed at a random moment and its machine's
files gone, it goes on elsewhere from its copy, and ends with the tables of an undisturbed run.

The copy lies in a local directory, reached by a filesystem of fsspec of which 5 % of the operations fail; nothing in
the product knows of that.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import REPOSITORY, STUDY, Run, command
from tests.flaky_filesystem import environment
from tests.same_tables import assert_same_study, markers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FAILS = 0.05
EVERY_SECONDS = 3
"""Between two pushes, so that a study of a minute has many."""


@pytest.fixture
def flaky(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path / "site", FAILS)


def line(copies: Path, work: Path) -> list[str]:
    """The job, with pushes that follow each other closely."""
    _, script, *rest = command(copies)
    return [
        sys.executable,
        "-c",
        "import runpy, sys; from rlheals_ray import mirror; "
        f"mirror.Mirror.__init__.__defaults__ = ({EVERY_SECONDS}, *mirror.Mirror.__init__.__defaults__[1:]); "
        f"sys.argv = sys.argv[1:]; runpy.run_path({str(REPOSITORY / script)!r}, run_name='__main__')",
        script,
        *(f"storage=flaky://{copies}" if part.startswith("storage=") else part for part in rest),
        f"work={work}",
    ]


def ended_well(copies: Path, work: Path, flaky: dict[str, str]) -> str:
    done = subprocess.run(
        line(copies, work), cwd=REPOSITORY, env=flaky, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def kill(job: subprocess.Popen[str]) -> None:
    """Of the driver; Ray's processes go with it."""
    below = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGKILL)
    job.wait()
    psutil.wait_procs(below, timeout=60)


def test_a_study_that_loses_its_machine_goes_on_from_its_copy(
    whole: Run, tmp_path: Path, flaky: dict[str, str]
) -> None:
    copies, here, there = tmp_path / "copies", tmp_path / "here", tmp_path / "there"
    for part in ("checkpoints/base", "markers/base.json"):  # training the base again would only take time
        target = here / STUDY / part
        target.parent.mkdir(parents=True, exist_ok=True)
        source = whole.root / part
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(
            line(copies, here), cwd=REPOSITORY, env=flaky, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        wanted = random.randint(2, 20)
        while len(markers(copies / STUDY)) < wanted:
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        delay = random.uniform(0, EVERY_SECONDS)
        time.sleep(delay)
        kill(job)
    done = {path: path.read_bytes() for path in markers(copies / STUDY)}
    print(f"killed {delay:.2f} s after {wanted} units were in the copy, with {len(done)} there", flush=True)
    shutil.rmtree(here)
    for table in (copies / STUDY).rglob("*.parquet"):
        if not table.name.startswith("."):
            pq.read_table(table)
    told = subprocess.run(
        [sys.executable, "jobs/status.py", STUDY, "--storage", f"flaky://{copies}", "--json"],
        cwd=REPOSITORY, env=flaky, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    status = json.loads(told.stdout)
    assert sum(stage["done"] for stage in status["stages"]) >= len(done) - 2, told
    assert status["holder"]["pid"] == job.pid
    said = ended_well(copies, there, flaky)
    assert "files" in said and "are fetched to" in said
    assert {path: path.read_bytes() for path in done} == done, "a finished unit was done again"
    assert_same_study(there / STUDY, whole.root)
    assert_same_study(copies / STUDY, whole.root)
    assert json.loads((copies / STUDY / "mirror.json").read_text())["ended"] is True
    # Nothing is left to do, from a third directory too.
    assert "are fetched to" in ended_well(copies, tmp_path / "third", flaky)
