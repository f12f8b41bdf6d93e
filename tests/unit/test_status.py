"""How far trunks and branches came, which of them run or wait, and what failed, as their status tells it."""

import os
import time
from pathlib import Path

import pytest

from rlheals_ray.grid.branch_states import forget_failure, note_failure
from rlheals_ray.grid.status import Run, Status
from rlheals_ray.grid.trunk_tracking import TrunkCurves
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.rl.trl_learner import PROGRESS
from rlheals_ray.storage import write_json, write_text
from tests.marked_study import MarkedStudy, counted, tiny

TRUNK = Trunk("plain", 0)
BRANCH = Branch(TRUNK, 12, "ppo")
CONTROL = Branch(TRUNK, 12, "continued_sft")


@pytest.fixture
def study(tmp_path: Path) -> MarkedStudy:
    return tiny(tmp_path)


def run_of(status: Status, branch: Branch | Trunk) -> Run:
    wanted = (None, None) if isinstance(branch, Trunk) else (branch.algorithm, branch.sft_step)
    found = [r for r in status.runs if (r.algorithm, r.sft_step, r.seed) == (*wanted, branch.seed)]
    assert len(found) == 1
    return found[0]


# --- trunks and branches


@pytest.fixture
def begun(study: MarkedStudy) -> MarkedStudy:
    """Base done, a trunk whose state goes up to update 8 and whose checkpoint 4 is published."""
    study.base()
    unit = study.units.trunk(TRUNK)
    for step in (0, 4):
        study.checkpoint(TRUNK.checkpoint(step), unit)
    write_text(study.files.state(unit) / "checkpoint-8" / "COMPLETE", "of a whole model")
    (study.files.state(unit) / "checkpoint-11").mkdir()  # not whole
    return study


def test_a_trunk_that_was_killed_is_begun_at_its_last_whole_state(begun: MarkedStudy) -> None:
    trunk = run_of(begun.status(), TRUNK)
    assert (trunk.state, trunk.step, trunk.of) == ("begun", 8, 12)


def test_it_runs_while_a_process_holds_the_study(begun: MarkedStudy) -> None:
    with begun.files.lock():
        status = begun.status()
    assert run_of(status, TRUNK).state == "running"
    assert status.holder is not None and status.holder.pid == os.getpid()
    assert status.running_seconds == pytest.approx(time.time() - status.holder.since, abs=30)
    assert begun.status().holder is None


def test_a_state_from_before_the_process_began_is_not_running(begun: MarkedStudy) -> None:
    for path in (begun.root / "state").rglob("*"):
        os.utime(path, (1.0, 1.0))
    with begun.files.lock():
        assert run_of(begun.status(), TRUNK).state == "begun"


def test_a_run_whose_curve_grows_is_running_before_it_has_a_state(study: MarkedStudy) -> None:
    """The names are those under which its trackers write."""
    for number, run in enumerate((TRUNK, BRANCH, CONTROL)):
        if isinstance(run, Trunk):
            curves = TrunkCurves(study.study, study.files)
            curves.begin(run)
            curves.update(run, {"step": 1, "loss": 2.0})
            curves.close()
        else:
            write_text(study.root / "tune" / "tensorboard" / run.run / "events.out.tfevents.1", "x")
        with study.files.lock():
            states = [run_of(study.status(), one).state for one in (TRUNK, BRANCH, CONTROL)]
        assert states.count("running") == number + 1 and states[number] == "running"
    assert run_of(study.status(), BRANCH).state == "left"


def test_a_branch_that_failed_in_the_run_under_way_is_not_running(study: MarkedStudy) -> None:
    unit = study.units.branch(BRANCH)
    write_text(study.files.state(unit) / "CURRENT", "version-000000")
    write_text(study.root / "tune" / "tensorboard" / BRANCH.run / "events.out.tfevents.1", "x")
    note_failure(study.files, unit, TRACEBACK, update=1)
    with study.files.lock():
        assert run_of(study.status(), BRANCH).state == "failed"
        forget_failure(study.files, unit)
        assert run_of(study.status(), BRANCH).state == "running"


def test_the_base_runs_while_nothing_is_done_and_a_process_holds_the_study(study: MarkedStudy) -> None:
    assert study.status().stages[0].left == 1
    with study.files.lock():
        assert study.status().stages[0].running == 1


def test_a_state_of_other_settings_is_not_taken_for_this_one(begun: MarkedStudy) -> None:
    other = run_of(begun.status("sft.learning_rate=1e-5"), TRUNK)
    assert (other.state, other.step) == ("left", 0)


def test_the_step_of_a_ppo_branch_is_that_of_its_state(study: MarkedStudy) -> None:
    from rlheals_ray.config import RLSettings
    from rlheals_ray.rl.branch_state import save_branch
    from tests.learning import learner, tiny_llama

    ppo = learner(tiny_llama(), RLSettings(episodes=8, max_attempts=3))
    state = study.files.state(study.units.branch(BRANCH))
    for rows in ([{"rl_step": 1}],):
        save_branch(
            state, ppo.policy, {"critic": ppo.critic}, {"value_optimizer": ppo.value_optimizer}, rows=rows
        )
    branch = run_of(study.status(), BRANCH)
    assert (branch.state, branch.step, branch.of) == ("begun", 1, 2)


def test_the_step_of_a_branch_of_trl_is_that_of_its_state(tmp_path: Path) -> None:
    study = tiny(tmp_path, "rl.algorithm=grpo")
    branch = Branch(TRUNK, 12, "grpo")
    state = study.files.state(study.units.branch(branch))
    write_json(state / "checkpoint-4" / PROGRESS, {"rows": [{}], "received": {}})
    assert run_of(study.status(), branch).step == 1


def test_a_branch_that_was_stopped_early_is_done_and_its_later_probes_are_no_work(tmp_path: Path) -> None:
    study, other = tiny(tmp_path / "a"), tiny(tmp_path / "b")
    study.branch(BRANCH, updates=1)
    other.branch(BRANCH)
    stopped = run_of(study.status(), BRANCH)
    assert (stopped.state, stopped.step, stopped.cause) == ("done", 1, "stopped early")
    for stage in ("probes", "hidden"):
        assert counted(study.status())[stage][1] == counted(other.status())[stage][1] - 1


def test_a_control_without_anything_to_learn_from_is_done_at_no_budget(study: MarkedStudy) -> None:
    study.branch(CONTROL, updates=0)
    found = run_of(study.status(), CONTROL)
    assert (found.state, found.step) == ("done", 0)


# --- failures

TRACEBACK = "Traceback (most recent call last):\n  File 'x', line 1\nRuntimeError: the engine is gone [red]\n"


def test_a_failed_branch_tells_its_cause_its_last_update_and_its_log(study: MarkedStudy) -> None:
    unit = study.units.branch(BRANCH)
    note_failure(study.files, unit, TRACEBACK, update=1)
    write_text(study.root / "logs" / f"{unit.name.replace('/', '_')}.log", TRACEBACK)
    status = study.status()
    assert run_of(status, BRANCH).state == "failed" and run_of(status, BRANCH).step == 1
    (failure,) = status.failures
    assert failure.unit == unit.name and failure.cause == "RuntimeError: the engine is gone [red]"
    assert failure.log is not None and (study.root / failure.log).read_text() == TRACEBACK
    forget_failure(study.files, unit)
    assert study.status().failures == ()


def test_a_failure_of_other_settings_is_none_of_these(study: MarkedStudy) -> None:
    note_failure(study.files, study.units.branch(BRANCH), TRACEBACK)
    write_json(study.root / "failures.json", {BRANCH.name: "RuntimeError: x", TRUNK.name: "RuntimeError: y"})
    assert [failure.unit for failure in study.status().failures] == [TRUNK.name, BRANCH.name]
    assert study.status("sft.learning_rate=1e-5").failures == ()


def test_a_failed_probe_and_a_stage_that_broke_off_are_told(study: MarkedStudy) -> None:
    write_json(study.root / "failures.json", {"probe/base": "ValueError: a", "spectra": "MemoryError: b"})
    status = study.status()
    assert {(f.unit, f.cause) for f in status.failures} == {
        ("probe/base", "ValueError: a"),
        ("spectra", "MemoryError: b"),
    }
    assert next(stage for stage in status.stages if stage.name == "probes").failed == 1


def test_what_was_done_since_it_failed_has_not_failed(study: MarkedStudy) -> None:
    write_json(study.root / "failures.json", {"base": "OSError: x"})
    study.base()
    assert study.status().failures == ()


def test_a_failure_of_an_earlier_run_is_told_as_such(study: MarkedStudy) -> None:
    write_json(study.root / "failures.json", {TRUNK.name: "OSError: x"})
    os.utime(study.root / "failures.json", (1.0, 1.0))
    with study.files.lock():
        assert [failure.before_this_run for failure in study.status().failures] == [True]
    assert [failure.before_this_run for failure in study.status().failures] == [False]
