"""One branch that cannot be trained, in a study run by its job: the others finish, and the study says what failed.

tests/ray/test_branches.py has the same on warm engines, in the default tests.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.conftest import OVERRIDES, REPOSITORY, STUDY, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

GOOD, BROKEN = 10, 80


def test_a_checkpoint_of_nan_costs_its_own_branch_alone(whole: Run, tmp_path: Path) -> None:
    root = tmp_path / STUDY
    shutil.copytree(whole.root, root)
    probes = ("markers/probe/rl", "markers/probe/control")
    for made in (
        "markers/rl",
        "markers/control",
        "checkpoints/rl",
        "checkpoints/control",
        "parts/rl",
        *probes,
    ):
        shutil.rmtree(root / made)
    weights = root / f"checkpoints/sft/seed=0/step={BROKEN:06d}/model.safetensors"
    ruined = {name: tensor * float("nan") for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(ruined, weights, metadata={"format": "pt"})

    command = [sys.executable, "jobs/rl.py", STUDY, *OVERRIDES, f"storage={tmp_path}"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=380)
    study = Run(root, ended.returncode, ended.stdout + ended.stderr)

    assert study.code == 1, study.output
    name = f"rl/seed=0/sft_step={BROKEN:06d}"
    causes = json.loads((root / "failures.json").read_text())
    assert list(causes) == [name] and "nan" in causes[name].lower()
    assert (root / "logs" / f"{name.replace('/', '_')}.log").exists()
    assert f"failed {name}" in study.output.replace("\n", " ")
    states = {(row["algorithm"], row["sft_step"]): row for row in study.table("branches").to_pylist()}
    assert states["ppo", GOOD]["status"] == states["continued_sft", GOOD]["status"] == "done"
    assert states["ppo", BROKEN]["status"] == "failed" and "nan" in states["ppo", BROKEN]["cause"].lower()
    assert states["continued_sft", BROKEN]["status"] == "waiting"
    cells = {(row["sft_step"], row["rl_step"]) for row in study.table("boundary").to_pylist()}
    assert (GOOD, 10) in cells and (BROKEN, 10) not in cells
    assert "failed" in (root / "report.html").read_text()
