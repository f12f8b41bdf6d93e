"""One branch that cannot be trained, in a study run by its job: the others finish, and the study says what failed.

tests/ray/test_branches.py has the same on warm engines, in the default tests.
"""

from __future__ import annotations

import html
import json
import re
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
    page = (root / "report.html").read_text()
    marks = map_marks(page)
    assert set(marks) == {(BROKEN, budget) for budget in (5, 10)}, "of this branch alone, at every budget"
    for word, why in marks.values():
        assert word == "failed" and "seed 0 failed" in why and "nan" in why.lower()
    (row,) = (row for row in table_rows(page) if row[0] == "✕ failed")
    assert row[2:4] == ["0", str(BROKEN)] and "nan" in row[-1].lower()


def map_marks(page: str) -> dict[tuple[int, int], tuple[str, str]]:
    """(SFT step, RL step) of the map of healing -> the word and the cause at a cell that has no value."""
    figure = re.search(r'<script type="application/json" id="data-healing-0">(.*?)</script>', page, re.DOTALL)
    assert figure is not None
    blank = [trace for trace in json.loads(figure[1])["data"] if trace.get("meta") == "gap"]
    return {
        (int(step), int(budget)): (word.strip(), why)
        for trace in blank
        for step, budget, word, why in zip(
            trace["y"], trace["x"], trace["text"], trace["customdata"], strict=True
        )
    }


def table_rows(page: str) -> list[list[str]]:
    """The cells of every row of every table."""
    return [
        [html.unescape(cell).strip() for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    ]
