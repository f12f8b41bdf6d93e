"""Branches and controls of a study in one real sweep: one branch has NaN weights to start from, the others finish."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from rlheals_ray import tables
from rlheals_ray.grid.branch_states import branch_rows, spent_by_budget
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.stages import rl_stage
from rlheals_ray.lineage import Branch, Trunk, branches, controls
from rlheals_ray.sft.controls import TRAIN
from rlheals_ray.storage import StudyFiles
from tests.toy_lab import Lab, toy_study

if TYPE_CHECKING:
    from rlheals_ray.config import Study

TRUNK = Trunk("plain", 0)
GOOD, BROKEN = 0, 1
"""SFT steps; the checkpoint of the second holds NaN."""


def a_study(lab: Lab, name: str, **rl: Any) -> tuple[Study, StudyFiles]:
    """A study whose trunk is done: its checkpoints are the toy model."""
    rl = {"budgets": [0, 2, 4], "from_steps": [GOOD, BROKEN], "episodes": 64, **rl}
    study = toy_study(name, lab.model, **rl)
    study = study.model_copy(update={"seeds": (TRUNK.seed,)})
    files = StudyFiles(lab.storage / name)
    unit = Session(study, files).units.trunk(TRUNK)
    for step in study.sft.steps:
        shutil.copytree(lab.model, files.checkpoint(TRUNK.checkpoint(step)))
        files.stamp(files.checkpoint(TRUNK.checkpoint(step)), unit)
    files.mark_done(unit)
    return study, files


def swept(lab: Lab, study: Study, files: StudyFiles) -> Session:
    """The study's RL stage, by the laboratory's warm engines and groups."""
    session = Session(study, files)
    session.__dict__.update(pool=lab.pool, training=lab.training)
    rl_stage(session)
    return session


@pytest.fixture(scope="module")
def broken(lab: Lab) -> Iterator[Session]:
    """The sweep of a study with a checkpoint of NaN, its provenance as it was."""
    study, files = a_study(lab, "broken")
    weights = files.checkpoint(TRUNK.checkpoint(BROKEN)) / "model.safetensors"
    ruined = {name: tensor * float("nan") for name, tensor in load_file(weights).items()}
    save_file(ruined, weights, metadata={"format": "pt"})
    yield swept(lab, study, files)


def rows_of(session: Session) -> dict[tuple[str, int], dict[str, Any]]:
    rows = tables.table("branches", branch_rows(session)).to_pylist()
    return {(row["algorithm"], row["sft_step"]): row for row in rows}


def test_the_branch_fails_with_its_cause_and_nothing_else_does(broken: Session) -> None:
    failed = Branch(TRUNK, BROKEN, "ppo")
    assert list(broken.failures) == [failed.name], "the study's exit code is 1 for this one alone"
    assert "nan" in broken.failures[failed.name].lower()
    states = rows_of(broken)
    assert {key for key, row in states.items() if row["status"] == "done"} == {
        (algorithm, GOOD) for algorithm in ("ppo", "continued_sft", "rejection_sft")
    }
    row = states["ppo", BROKEN]
    assert row["status"] == "failed" and "nan" in row["cause"].lower()
    for control in ("continued_sft", "rejection_sft"):
        row = states[control, BROKEN]
        assert row["status"] == "waiting" and "its RL branch failed" in row["cause"]
        assert not broken.files.checkpoint(Branch(TRUNK, BROKEN, control).name).exists()


def test_a_later_report_still_knows_the_cause(broken: Session) -> None:
    assert rows_of(Session(broken.study, broken.files)) == rows_of(broken)


def test_what_finished_is_probed_and_in_the_tables(broken: Session) -> None:
    done = [b for b in [*branches(broken.study), *controls(broken.study)] if b.sft_step == GOOD]
    assert len(done) == 3
    for branch in done:
        unit = broken.units.branch(branch)
        part = broken.files.read_part("rl", unit).to_pylist()
        steps = [2, 4] if branch.is_control else [1, 2, 3, 4]
        assert [row["rl_step"] for row in part] == steps
        assert {row["algorithm"] for row in part} == {branch.algorithm}
        for probe in broken.units.branch_probes(branch):
            assert probe.stage == ("control" if branch.is_control else "rl")
            scores = broken.files.read_part("scores", probe.unit)
            assert {row["stage"] for row in scores.to_pylist()} == {probe.stage}


@pytest.mark.parametrize("kind", ["continued_sft", "rejection_sft"])
def test_a_control_had_the_compute_of_its_branch(kind: str, broken: Session) -> None:
    """To within half an update of SFT, of which the last is the next one's cost."""
    control = Branch(TRUNK, GOOD, kind)
    rl = broken.units.branch(Branch(TRUNK, GOOD, "ppo"))
    targets = spent_by_budget(broken.study, broken.files, rl)
    details = broken.files.details(broken.units.branch(control))
    part = broken.files.read_part("rl", broken.units.branch(control)).to_pylist()
    longest = max(row["tokens"] for row in part)
    assert set(targets) == {2, 4}
    for budget, target in targets.items():
        assert abs(details["compute"][str(budget)] - target) <= TRAIN * longest / 2
    state = rows_of(broken)[kind, GOOD]
    assert state["compute"] == details["compute"]["4"] and state["sft_updates"] == details["sft_updates"]["4"]
    assert rows_of(broken)["ppo", GOOD]["compute"] == targets[4]


def test_no_control_was_given_a_problem_of_the_ood_rule(broken: Session) -> None:
    import pyarrow.parquet as pq

    found = [pq.read_table(path) for path in (broken.files.root / "received" / "control").rglob("*.parquet")]
    assert len(found) == 2
    assert set(pa.concat_tables(found)["rule"].to_pylist()) == {"id"}


def test_rejection_without_a_solved_sample_says_so_and_makes_no_checkpoint(lab: Lab) -> None:
    """One key of eight colours and one attempt at a temperature that always says the same wrong word."""
    study, files = a_study(lab, "unsolved", from_steps=[GOOD], budgets=[0, 1], episodes=8, temperature=1e-3)
    study = study.model_copy(
        update={"controls": study.controls.model_copy(update={"kinds": ("rejection_sft",)})}
    )
    session = swept(lab, study, files)
    row = rows_of(session)["rejection_sft", GOOD]
    solved = files.read_part("rl", session.units.branch(Branch(TRUNK, GOOD, "ppo")))[
        "solved_at_k"
    ].to_pylist()
    if any(solved):
        pytest.skip("the toy model guessed right")
    assert session.failures == {}
    assert row["status"] == "stopped" and "was solved" in row["cause"]
    assert not files.checkpoint(Branch(TRUNK, GOOD, "rejection_sft").name).exists()


def test_a_branch_that_is_stopped_early_leaves_its_later_budgets_out(lab: Lab) -> None:
    stop = {"updates": 2, "solved_at_k": 0.99}
    study, files = a_study(lab, "stopped", from_steps=[GOOD], budgets=[0, 1, 6], early_stop=stop)
    session = swept(lab, study, files)
    assert session.failures == {}
    states = rows_of(session)
    row = states["ppo", GOOD]
    assert (row["status"], row["rl_step"]) == ("stopped", 2) and "rl.early_stop" in row["cause"]
    probes = session.units.branch_probes(Branch(TRUNK, GOOD, "ppo"))
    assert [files.is_done(probe.unit) for probe in probes] == [True, False]
    assert (states["continued_sft", GOOD]["status"], states["continued_sft", GOOD]["rl_step"]) == (
        "stopped",
        1,
    )
