"""A changed setting of a finished study: what depends on it is done again and told of, the rest is reused.

Which units each setting reaches is in tests/unit/test_units.py; here one change is really run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import OVERRIDES, REPOSITORY, STUDY, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_another_learning_rate_of_rl_redoes_its_branches_and_nothing_of_sft(
    whole: Run, tmp_path: Path
) -> None:
    root = tmp_path / STUDY
    shutil.copytree(whole.root, root)
    marker = root / "markers" / "rl" / "seed=0" / "sft_step=000010.json"
    kept = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for part in ("base", "sft", "losses", "probe/base", "probe/sft")
        for path in _files(root / "markers" / part)
    }
    assert {path.relative_to(root / "markers").parts[0] for path in kept} == {
        "base.json",
        "sft",
        "losses",
        "probe",
    }
    weights = {
        path: path.stat().st_mtime_ns for path in (root / "checkpoints" / "sft").rglob("*.safetensors")
    }
    before = json.loads(marker.read_text())["fingerprint"]
    changed = ["rl.learning_rate=1e-4", "rl.from_steps=[10]", "rl.budgets=[0,1]", "controls.kinds=[]"]
    job = subprocess.run(
        [sys.executable, "jobs/rl.py", STUDY, *OVERRIDES, *changed, f"storage={tmp_path}"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout + job.stderr
    assert "rl/seed=0/sft_step=000010: its settings, its parents or its code changed" in job.stdout
    assert "sft/seed=0: its settings" not in job.stdout
    assert json.loads(marker.read_text())["fingerprint"] != before
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept} == kept
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    rows = pq.read_table(root / "tables" / "rl.parquet").to_pylist()
    assert [(row["sft_step"], row["rl_step"]) for row in rows] == [(10, 1)], (
        "rows of the old branches were kept"
    )
    checkpoints = {
        path.name for path in (root / "checkpoints" / "rl" / "seed=0" / "sft_step=000010").iterdir()
    }
    assert checkpoints == {"rl_step=000001"}, "checkpoints of the old branch were kept"


def _files(marker: Path) -> list[Path]:
    return [*marker.rglob("*.json"), *marker.parent.glob(f"{marker.name}.json")]
