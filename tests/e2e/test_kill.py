"""Kill -9 of the driver in SFT, in RL and in a probe, at random moments; the same command then resumes.

The moments are drawn afresh in every run and printed; nothing in the product knows of them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from rlheals_ray.tables import SCHEMAS
from tests.e2e.conftest import REPOSITORY, STUDY, Run, command, run

pytestmark = pytest.mark.timeout(600)

# What tells from outside that a stage is under way, and how long it usually lasts from there (seconds).
STAGES: dict[str, tuple[Callable[[Path], bool], float]] = {
    "sft": (lambda root: any((root / "state" / "sft").glob("*/checkpoint-*")), 2.0),
    "probe": (lambda root: (root / "markers" / "sft" / "seed=0.json").exists(), 5.0),
    "rl": (lambda root: any((root / "state" / "rl").rglob("CURRENT")), 5.0),
}


def kill_in(stage: str, storage: Path) -> str:
    """Start the job, wait until the stage is seen to be under way, and kill the driver a random while later."""
    underway, lasts = STAGES[stage]
    root = storage / STUDY
    log = (storage / f"{stage}.log").open("w")
    driver = subprocess.Popen(command(storage), cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
    while not underway(root) and driver.poll() is None:
        time.sleep(0.02)
    delay = random.uniform(0, lasts)
    time.sleep(delay)
    ended = driver.poll()
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    done = sorted(str(p.relative_to(root / "markers"))[:-5] for p in (root / "markers").rglob("*.json"))
    return f"{stage}: killed {delay:.2f} s after it was seen, driver {'ran' if ended is None else ended}; done: {done}"


def comparable(table: pa.Table) -> list[dict[str, object]]:
    """Rows without what no rerun can repeat: seconds, and the name of the run that made them."""
    dropped = {name for name in table.schema.names if name.startswith("seconds")}
    dropped |= {"train_run", "tokens_per_second", "idle_share"}
    rows: list[dict[str, object]] = table.drop_columns(sorted(dropped & set(table.schema.names))).to_pylist()
    return rows


def test_a_study_killed_in_every_stage_ends_with_the_tables_of_one_that_was_not(
    whole: Run, tmp_path: Path
) -> None:
    # The base is the same for both; training it again would only take time.
    for part in ("checkpoints/base", "markers/base.json"):
        target = tmp_path / STUDY / part
        target.parent.mkdir(parents=True, exist_ok=True)
        source = whole.root / part
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for stage in STAGES:
        print(kill_in(stage, tmp_path))
    markers = {p: p.stat().st_mtime_ns for p in (tmp_path / STUDY / "markers").rglob("*.json")}
    resumed = run(tmp_path)
    assert resumed.code == 0, resumed.output
    assert {p: p.stat().st_mtime_ns for p in markers} == markers, "a finished unit was done again"
    for name in SCHEMAS:
        assert_same_rows(name, comparable(resumed.table(name)), comparable(whole.table(name)))
    assert not list((tmp_path / STUDY).rglob(".*.tmp-*")), "something half-written was left behind"


def assert_same_rows(name: str, resumed: list[dict[str, object]], whole: list[dict[str, object]]) -> None:
    assert len(resumed) == len(whole), f"{name}: rows are missing or double"
    for got, expected in zip(resumed, whole, strict=True):
        for column, value in expected.items():
            if isinstance(value, float):
                assert got[column] == pytest.approx(value, rel=1e-4, abs=1e-5), (name, column, expected)
            else:
                assert got[column] == value, (name, column, expected)
