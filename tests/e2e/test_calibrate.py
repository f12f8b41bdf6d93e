"""`--plan --calibrate`: a miniature is really run, its rates are kept, and nothing else of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlheals_ray.config import load_study
from rlheals_ray.grid.rates import FILE, UNITS, rates_for
from tests.e2e.conftest import REPOSITORY

pytestmark = pytest.mark.slow


def test_a_calibrated_plan_knows_every_rate(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/grid.py", "tiny", f"storage={tmp_path}", "--plan"]
    first = subprocess.run(
        [*command, "--calibrate"], cwd=REPOSITORY, capture_output=True, text=True, timeout=600
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    rates = rates_for(load_study("tiny", [f"storage={tmp_path}"]), tmp_path / "tiny")
    assert rates.keys() == UNITS.keys()
    assert all("calibrated on" in rate.source for rate in rates.values())
    before = json.loads((tmp_path / FILE).read_text())
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "time from nothing" in again.stdout and "calibrated on" in again.stdout
    assert json.loads((tmp_path / FILE).read_text()) == before
