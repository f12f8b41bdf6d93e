"""What `--plan` said before, beside what a whole study left: bytes, updates, and rates for the next plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlheals_ray.config import Study
from rlheals_ray.grid.plan_bytes import disk
from rlheals_ray.grid.plan_counts import counts
from rlheals_ray.grid.plan_time import estimates
from rlheals_ray.grid.rates import NOT_SETTINGS, rates_for
from tests.e2e.conftest import Run


def study_of(run: Run) -> Study:
    record = yaml.safe_load((run.root / "study.yaml").read_text())
    return Study.model_validate({key: value for key, value in record.items() if key not in NOT_SETTINGS})


def apparent(directory: Path) -> int:
    """Bytes of its files, hard links once."""
    files = [path.stat() for path in directory.rglob("*") if path.is_file()]
    return sum({file.st_ino: file.st_size for file in files}.values())


@pytest.mark.parametrize("kind", ["base", "sft", "rl"])
def test_checkpoints_are_as_large_and_as_many_as_planned(whole: Run, kind: str) -> None:
    planned, where = disk(study_of(whole)).checkpoints[kind], whole.root / "checkpoints" / kind
    assert len(list(where.rglob("provenance.json"))) == planned.count
    assert apparent(where) == pytest.approx(planned.bytes, rel=0.03)


def test_controls_take_no_more_than_planned(whole: Run) -> None:
    """A control without one solved sample to learn from leaves no checkpoint."""
    planned, where = disk(study_of(whole)).checkpoints["control"], whole.root / "checkpoints" / "control"
    found = len(list(where.rglob("provenance.json")))
    assert 0 < found <= planned.count
    assert apparent(where) == pytest.approx(planned.bytes * found / planned.count, rel=0.03)


def test_edits_and_factors_take_no_more_than_planned(whole: Run) -> None:
    """Fewer where the peak is the latest checkpoint; the simulated null spectra are beside the factors."""
    planned = disk(study_of(whole))
    assert apparent(whole.root / "checkpoints" / "edit") <= 1.1 * planned.checkpoints["edit"].bytes
    assert apparent(whole.root / "factors") <= 1.1 * planned.factors.bytes


def test_updates_are_those_planned(whole: Run) -> None:
    planned = counts(study_of(whole))
    rows = whole.table("rl").to_pylist()
    assert sum(row["seconds_generate"] is not None for row in rows) == planned.rl_updates
    assert max(row["step"] for row in whole.table("sft").to_pylist()) * planned.trunks == planned.sft_updates


def test_a_finished_study_knows_its_rates(whole: Run) -> None:
    study = study_of(whole)
    rates = rates_for(study, whole.root)
    assert all(
        one.seconds is not None for one in estimates(study, {n: r.seconds for n, r in rates.items()}).values()
    )
