"""What edits call by name is found from probes, on the half of the problems that selects."""

from pathlib import Path

import pytest

from rlheals_ray import tables
from rlheals_ray.config import load_study
from rlheals_ray.evaluation.probe import probe_problems
from rlheals_ray.grid.peaks import anchors, finished_branches, named_checkpoint, probed_trunks
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.units import Probe
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.storage import StudyFiles

TRUNK = Trunk("plain", 0)
STEPS = ["sft.steps=[0,4,12,20,30]", "rl.from_steps=[0,12,20,30]", "rl.budgets=[0,1,2]"]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """A study whose trunk is probed: OOD accuracy peaks at step 4."""
    study = load_study("tiny", STEPS)
    session = Session(study, StudyFiles.at(str(tmp_path), study.name))
    for probe, share in zip(session.units.trunk_probes(TRUNK), (0.0, 0.9, 0.6, 0.4, 0.2), strict=True):
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
    trained(session, step)
    for probe in session.units.branch_probes(from_step(step)):
        probed(session, probe, share)


def trained(session: Session, step: int, last: int = 2) -> None:
    """Leave what a branch would that came to update `last`: its marker, and a checkpoint that says who made it."""
    unit = session.units.branch(from_step(step))
    directory = session.files.checkpoint(from_step(step).checkpoint(last))
    directory.mkdir(parents=True)
    session.files.stamp(directory, unit)
    session.files.mark_done(unit)


def from_step(step: int) -> Branch:
    return Branch(TRUNK, step, "ppo")


def test_without_a_branch_from_past_the_peak_nothing_is_healed(session: Session) -> None:
    branch(session, 0, 1.0)  # before the peak nothing was lost that could be healed
    assert probed_trunks(session) == [TRUNK]
    steps = anchors(session, TRUNK)
    assert steps == {"peak": 4}
    assert named_checkpoint(session, TRUNK, "healed", steps) is None


def test_the_best_end_of_rl_from_past_the_peak_is_what_was_healed(session: Session) -> None:
    branch(session, 0, 1.0)
    for step, share in ((12, 0.5), (20, 0.8), (30, 0.3)):
        branch(session, step, share)
    steps = anchors(session, TRUNK)
    assert steps == {"peak": 4, "healed": 20}
    assert named_checkpoint(session, TRUNK, "healed", steps) == "rl/seed=0/sft_step=000020/rl_step=000002"


def test_a_branch_that_is_done_and_not_probed_does_not_count_yet(session: Session) -> None:
    branch(session, 12, 0.5)
    trained(session, 20)
    assert anchors(session, TRUNK)["healed"] == 12


def test_a_branch_that_was_stopped_before_its_last_budget_has_no_end(session: Session) -> None:
    branch(session, 12, 0.5)
    trained(session, 20, last=1)
    assert finished_branches(session, TRUNK) == [from_step(12)]
    assert named_checkpoint(session, TRUNK, "rl-20-2", {"peak": 4}) is None


def test_names_are_checkpoints_of_the_seed(session: Session) -> None:
    steps = anchors(session, TRUNK)
    found = {
        name: named_checkpoint(session, TRUNK, name, steps) for name in ("base", "peak", "latest", "sft-12")
    }
    assert found == {
        "base": "base",
        "peak": "sft/seed=0/step=000004",
        "latest": "sft/seed=0/step=000030",
        "sft-12": "sft/seed=0/step=000012",
    }


def test_the_end_of_a_branch_has_its_name_once_the_branch_is_done(session: Session) -> None:
    assert named_checkpoint(session, TRUNK, "rl-20-2", {"peak": 4}) is None
    branch(session, 20, 0.5)
    assert (
        named_checkpoint(session, TRUNK, "rl-20-2", {"peak": 4}) == "rl/seed=0/sft_step=000020/rl_step=000002"
    )
