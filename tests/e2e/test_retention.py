"""`keep`: what stays of a finished study, that nothing is done again for it, and what a later wish is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rlheals_ray.config import InputError, Study, load_study
from rlheals_ray.grid.study_run import run_study
from tests.e2e.conftest import OVERRIDES, STUDY, Run

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def storage(whole: Run, tmp_path: Path) -> Path:
    """A copy of the whole study."""
    assert whole.code == 0, whole.output
    shutil.copytree(whole.root, tmp_path / STUDY)
    return tmp_path


def study(storage: Path, *more: str) -> Study:
    return load_study(STUDY, [*OVERRIDES, f"storage={storage}", *more])


def with_weights(root: Path) -> set[str]:
    """Names of the checkpoints that have weights."""
    every = root / "checkpoints"
    return {str(path.parent.relative_to(every)) for path in every.rglob("*.safetensors")}


def markers(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (root / "markers").rglob("*.json")}


def test_with_keep_best_base_and_the_recommended_checkpoint_stay(storage: Path) -> None:
    root = storage / STUDY
    before, done = with_weights(root), markers(root)
    assert run_study(study(storage, "keep=best")) == 0
    chosen = [row for row in Run(root, 0, "").table("recommendation").to_pylist() if row["chosen"]]
    assert with_weights(root) == {"base", *(row["checkpoint"] for row in chosen)}
    assert all((root / "checkpoints" / name / "provenance.json").exists() for name in before)
    removed = sorted(before - with_weights(root))
    note = (root / "checkpoints" / removed[0] / "REMOVED.md").read_text()
    assert "keep=all" in note and "markers/" in note
    assert markers(root) == done, "nothing was done again"
    tables = {path.name: path.read_bytes() for path in (root / "tables").iterdir()}

    assert run_study(study(storage, "keep=best")) == 0
    assert markers(root) == done
    assert {path.name: path.read_bytes() for path in (root / "tables").iterdir()} == tables

    files = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(InputError, match=r"keep .*whose weights were removed.*delete"):
        run_study(study(storage, "keep=best", "evaluation.problems=30"))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == files, "something was written"


def test_with_keep_boundary_starts_ends_and_peaks_stay(storage: Path) -> None:
    wanted = study(storage, "keep=boundary")
    root = storage / STUDY
    assert run_study(wanted) == 0
    left = with_weights(root)
    last = wanted.rl.budgets[-1]
    for start in wanted.rl.from_steps:
        assert f"sft/seed=0/step={start:06d}" in left
        assert f"rl/seed=0/sft_step={start:06d}/rl_step={last:06d}" in left
    assert not any(name.startswith(("edit/", "control/")) for name in left - _recommended(root))


def _recommended(root: Path) -> set[str]:
    rows = Run(root, 0, "").table("recommendation").to_pylist()
    return {row["checkpoint"] for row in rows if row["chosen"]}


def test_nothing_is_removed_while_a_branch_waits(storage: Path) -> None:
    root = storage / STUDY
    before = with_weights(root)
    # A run that comes to no RL: the branch's marker and state are as before it began.
    marker = next((root / "markers" / "rl").rglob("*.json"))
    marker.unlink()
    from rlheals_ray.grid.preflight import preflight
    from rlheals_ray.grid.retention import retention_stage
    from rlheals_ray.grid.session import Session

    wanted = study(storage, "keep=best")
    retention_stage(Session(wanted, preflight(wanted)))
    assert with_weights(root) == before
