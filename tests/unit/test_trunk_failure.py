"""A trunk that fails: the branches that wait for it say why, also to later reports, until it is tried again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlheals_ray.config import Study, load_study
from rlheals_ray.grid.branch_states import branch_rows
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.stages import sft_stage
from rlheals_ray.lineage import trunks
from rlheals_ray.storage import StudyFiles
from rlheals_ray.training import WorkFailed
from rlheals_ray.work_queue import Work

CAUSE = "Traceback:\n  line 3\nFloatingPointError: the loss of update 7 is nan\n"


class Groups:
    """In the place of the worker groups: trains nothing, and fails `broken`."""

    def __init__(self, study: Study, files: StudyFiles, broken: str | None) -> None:
        self.files, self.broken, self.ended = files, broken, False
        self.units = {trunk.name: Session(study, files).units.trunk(trunk) for trunk in trunks(study)}

    def run(self, work: Work) -> Iterator[dict[str, Any]]:
        if work.key == self.broken:
            raise WorkFailed(CAUSE)
        self.files.mark_done(self.units[work.key])
        yield from ()

    def has_ended(self) -> bool:
        return self.ended


def test_what_fails_as_the_study_ends_is_no_failure_to_later_reports(tmp_path: Path) -> None:
    study, files = load_study("tiny", ["tracking.tensorboard=false"]), StudyFiles(tmp_path / "tiny")
    session = Session(study, files)
    groups = Groups(study, files, "sft/seed=0")
    groups.ended = True
    session.__dict__.update(training=groups, pool=None)
    files.mark_done(session.units.base)
    files.mark_done(session.units.base_probe().unit)
    sft_stage(session)
    assert "sft/seed=0" in session.failures, "this run tells it all the same"
    assert not list((files.root / "state" / "failed").rglob("*.json"))


def sft(study: Study, files: StudyFiles, broken: str | None) -> Session:
    session = Session(study, files)
    session.__dict__.update(training=Groups(study, files, broken), pool=None)
    sft_stage(session)
    return session


def causes(session: Session) -> dict[int, set[str | None]]:
    """By seed, what the RL branches that are not done wait for."""
    rows = [row for row in branch_rows(session) if row["algorithm"] == "ppo"]
    assert {row["status"] for row in rows} == {"waiting"}
    return {seed: {row["cause"] for row in rows if row["seed"] == seed} for seed in (0, 1)}


def test_a_later_report_knows_why_a_trunk_failed_until_it_is_tried_again(tmp_path: Path) -> None:
    study = load_study("tiny", ["seeds=[0,1]", "tracking.tensorboard=false"])
    files = StudyFiles(tmp_path / "tiny")
    units = Session(study, files).units
    every = trunks(study)
    # What else the stage would do of the trunks.
    for unit in (units.base, *(units.losses(trunk) for trunk in every)):
        files.mark_done(unit)
    for probe in (units.base_probe(), *(probe for trunk in every for probe in units.trunk_probes(trunk))):
        files.mark_done(probe.unit)

    failed = sft(study, files, broken="sft/seed=1")
    assert failed.failures == {"sft/seed=1": CAUSE}
    why = {"its trunk failed: FloatingPointError: the loss of update 7 is nan"}
    assert causes(failed) == causes(Session(study, files)) == {0: {None}, 1: why}

    assert sft(study, files, broken=None).failures == {}
    assert causes(Session(study, files)) == {0: {None}, 1: {None}}
    assert not list((files.root / "state" / "failed").rglob("*.json"))
