"""A trunk that diverges fails with its cause; the other trunks of the study are trained, scored and probed."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from rlheals_ray.config import Study
from rlheals_ray.grid import stages
from rlheals_ray.grid.session import Session
from rlheals_ray.lineage import BASE, Trunk
from rlheals_ray.sft.trainer import train_trunk
from rlheals_ray.storage import StudyFiles
from rlheals_ray.training import Report
from tests.toy_lab import Lab, toy_study

STEPS = (0, 1, 3)
DIVERGES = Trunk("plain", 1)
OTHERS = [Trunk("plain", 0), Trunk("plain", 2)]


def trunk(study: Study, trunk: Trunk, report: Report, **arguments: Any) -> None:
    """The trunk's training function; one seed's rate is beyond reason."""
    if trunk == DIVERGES:
        study = study.model_copy(update={"sft": study.sft.model_copy(update={"learning_rate": 1e30})})
    train_trunk(study=study, trunk=trunk, report=report, **arguments)


def test_a_trunk_whose_loss_is_not_finite_costs_itself_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "TRAIN_TRUNK", "tests.ray.test_sft_diverged:trunk")
    study = toy_study("diverged", lab.model)
    sft = study.sft.model_copy(update={"steps": STEPS})
    study = study.model_copy(update={"seeds": (0, 1, 2), "sft": sft})
    files = StudyFiles(lab.storage / study.name)
    session = Session(study, files)
    session.__dict__.update(pool=lab.pool, training=lab.training)
    shutil.copytree(lab.model, files.checkpoint(BASE))
    files.stamp(files.checkpoint(BASE), session.units.base)

    stages.sft_stage(session)

    units = session.units
    assert list(session.failures) == [units.trunk(DIVERGES).name]
    cause = session.failures[units.trunk(DIVERGES).name]
    assert "the loss of update 2 is nan: SFT diverged; lower sft.learning_rate" in cause
    assert not files.is_done(units.trunk(DIVERGES)) and not files.is_done(units.losses(DIVERGES))
    assert not files.checkpoint(DIVERGES.checkpoint(STEPS[-1])).exists()
    for other in OTHERS:
        assert files.is_done(units.trunk(other))
        rows = files.read_part("sft", units.losses(other)).to_pylist()
        assert [row["step"] for row in rows] == list(STEPS)
        assert all(0 < row[loss] < 10 for row in rows for loss in ("id_loss", "ood_loss"))
        assert all(files.is_done(probe.unit) for probe in units.trunk_probes(other))
