"""The disk fills up, or its permissions are lost, in the middle of a study: it says so and ends; with the disk mended,
the same command ends with the tables of an undisturbed run. Nothing half-written ever counts.

The disk is a small one in memory, mounted for the test; the moments are drawn afresh in every run and printed.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import REPOSITORY, STUDY, Run, command
from tests.same_tables import assert_same_study, markers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MIB = 1 << 20
SIZE = 400 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(where)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def bound(disk: Path) -> list[str]:
    """The job, held to permissions also where root runs it."""
    if os.geteuid() != 0:
        return command(disk)
    dropped = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}", *command(disk)]


def begun(disk: Path, whole: Run) -> subprocess.Popen[str]:
    """The study under way on the disk, at a random moment of its training or of what follows."""
    for part in ("checkpoints/base", "markers/base.json"):  # training the base again would only take time
        target = disk / STUDY / part
        target.parent.mkdir(parents=True, exist_ok=True)
        source = whole.root / part
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    job = subprocess.Popen(
        bound(disk), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wanted = random.randint(2, 12)
    while len(markers(disk / STUDY)) < wanted:
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    delay = random.uniform(0, 3)
    time.sleep(delay)
    print(f"{delay:.2f} s after {wanted} units were done", flush=True)
    return job


def ends_and_says(job: subprocess.Popen[str], cause: str) -> None:
    output = job.communicate(timeout=400)[0]
    assert job.returncode == 1, output
    assert cause in output
    assert "Traceback" not in output


def finishes(disk: Path, whole: Run) -> None:
    for table in (disk / STUDY / "tables").glob("*.parquet"):
        pq.read_table(table)  # whole, however far the study came
    again = subprocess.run(bound(disk), cwd=REPOSITORY, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_same_study(disk / STUDY, whole.root)


def test_a_disk_that_fills_up(disk: Path, whole: Run) -> None:
    job = begun(disk, whole)
    filler = disk / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(MIB))
        except OSError:
            pass
    ends_and_says(job, "No space left on device")
    filler.unlink()
    finishes(disk, whole)


def test_a_study_that_may_no_longer_be_written(disk: Path, whole: Run) -> None:
    job = begun(disk, whole)
    root = disk / STUDY
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    ends_and_says(job, "Permission denied")
    again = subprocess.run(bound(disk), cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert again.returncode == 2 and "not a writable directory" in again.stderr
    for folder in folders:
        folder.chmod(0o755)
    finishes(disk, whole)
