"""What edits call by name is found from probes, on the half of the problems that selects."""

from pathlib import Path

import pytest

from rlheals_ray import tables
from rlheals_ray.config import load_study
from rlheals_ray.evaluation.probe import probe_problems
from rlheals_ray.grid.peaks import anchors, named_checkpoint, probed_seeds
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.units import Probe
from rlheals_ray.storage import StudyFiles

STEPS = ["sft.steps=[0,4,12,20,30]", "rl.from_steps=[0,12,20,30]", "rl.budgets=[0,1,2]"]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """A study whose trunk is probed: OOD accuracy peaks at step 4."""
    study = load_study("tiny", STEPS)
    session = Session(study, StudyFiles.at(str(tmp_path), study.name))
    for probe, share in zip(session.units.trunk_probes(0), (0.0, 0.9, 0.6, 0.4, 0.2), strict=True):
        probed(session, probe, share)
    return session


def probed(session: Session, probe: Probe, share: float) -> None:
    """Leave what a probe would: of every cluster the same share of OOD problems solved."""
    problems = probe_problems(session.task, session.study.evaluation, "ood")
    rows = [
        {"checkpoint": probe.checkpoint, "rule": "ood", "problem_id": problem.id, "attempts": 1,
         "solved_at": 1 if index < share * len(problems) else None, "well_formed": [True], "rewards": [0.0],
         "answers": [""]}
        for index, problem in enumerate(problems)
    ]  # fmt: skip
    session.files.write_part("episodes", probe.unit, tables.table("episodes", rows))
    session.files.mark_done(probe.unit)


def branch(session: Session, step: int, share: float) -> None:
    session.files.mark_done(session.units.branch(0, step))
    for probe in session.units.branch_probes(0, step):
        probed(session, probe, share)


def test_without_a_branch_from_past_the_peak_nothing_is_healed(session: Session) -> None:
    branch(session, 0, 1.0)  # before the peak nothing was lost that could be healed
    assert probed_seeds(session) == [0]
    steps = anchors(session, 0)
    assert steps == {"peak": 4}
    assert named_checkpoint(session, 0, "healed", steps) is None


def test_the_best_end_of_rl_from_past_the_peak_is_what_was_healed(session: Session) -> None:
    branch(session, 0, 1.0)
    for step, share in ((12, 0.5), (20, 0.8), (30, 0.3)):
        branch(session, step, share)
    steps = anchors(session, 0)
    assert steps == {"peak": 4, "healed": 20}
    assert named_checkpoint(session, 0, "healed", steps) == "rl/seed=0/sft_step=000020/rl_step=000002"


def test_a_branch_that_is_done_and_not_probed_does_not_count_yet(session: Session) -> None:
    branch(session, 12, 0.5)
    session.files.mark_done(session.units.branch(0, 20))
    assert anchors(session, 0)["healed"] == 12


def test_names_are_checkpoints_of_the_seed(session: Session) -> None:
    steps = anchors(session, 0)
    found = {name: named_checkpoint(session, 0, name, steps) for name in ("base", "peak", "latest", "sft-12")}
    assert found == {
        "base": "base",
        "peak": "sft/seed=0/step=000004",
        "latest": "sft/seed=0/step=000030",
        "sft-12": "sft/seed=0/step=000012",
    }


def test_the_end_of_a_branch_has_its_name_once_the_branch_is_done(session: Session) -> None:
    assert named_checkpoint(session, 0, "rl-20-2", {"peak": 4}) is None
    branch(session, 20, 0.5)
    assert named_checkpoint(session, 0, "rl-20-2", {"peak": 4}) == "rl/seed=0/sft_step=000020/rl_step=000002"
