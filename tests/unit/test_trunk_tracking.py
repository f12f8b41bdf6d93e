"""Live curves of SFT, as TensorBoard itself reads them."""

from __future__ import annotations

from pathlib import Path

from rlheals_ray.config import load_study
from rlheals_ray.grid.trunk_tracking import TrunkCurves, sft_metrics
from rlheals_ray.lineage import Trunk
from rlheals_ray.storage import StudyFiles
from tests.unit.test_tracking import curves


def test_loss_rate_and_gradient_norm_of_each_trunk_are_a_run(tmp_path: Path) -> None:
    written = TrunkCurves(load_study("tiny"), StudyFiles(tmp_path))
    trunks = [Trunk("plain", 0, named=True), Trunk("lora", 0, named=True)]
    for trunk in trunks:
        written.begin(trunk)
    for step in (1, 2):
        for place, trunk in enumerate(trunks):
            row = {"step": step, "of": 2, "loss": step + place, "learning_rate": 0.5, "grad_norm": 2.0}
            written.update(trunk, row)
    for trunk in trunks:
        written.end(trunk, failed=False)
    written.close()
    found = curves(tmp_path / "tune" / "tensorboard")
    assert set(found) == {"sft-plain-seed=0", "sft-lora-seed=0"}
    assert found["sft-lora-seed=0"] == {
        "sft/loss": [(1, 2.0), (2, 3.0)],
        "sft/learning_rate": [(1, 0.5), (2, 0.5)],
        "sft/grad_norm": [(1, 2.0), (2, 2.0)],
    }


def test_a_row_without_a_number_gives_no_curve() -> None:
    assert sft_metrics({"step": 0, "of": 4, "note": "resumed"}) == {}
    assert sft_metrics({"step": 1, "loss": float("nan"), "grad_norm": None}) == {}
