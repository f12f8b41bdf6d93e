"""What is told when a learner is lost and begun again, and which cells count as failed; without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rlheals_ray.config import load_study
from rlheals_ray.event_log import read_events
from rlheals_ray.grid import branch_states, sweep
from rlheals_ray.grid.branch_states import beside, forget_failure, note_failure, record_cells
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.sweep import SweepWatch
from rlheals_ray.lineage import branches, controls
from rlheals_ray.rollout.failures import Failure
from rlheals_ray.storage import StudyFiles
from rlheals_ray.work_queue import Restart


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(load_study("tiny"), StudyFiles(tmp_path / "tiny"))


class Lost:
    """A pool and worker groups that have lost what they are told to have lost."""

    def __init__(self) -> None:
        self.generators: list[Failure] = []
        self.groups: list[Restart] = []

    def failures(self) -> list[Failure]:
        return self.generators

    def restarts(self) -> list[Restart]:
        return self.groups


@pytest.fixture
def lost(session: Session, monkeypatch: pytest.MonkeyPatch) -> Lost:
    lost = Lost()
    session.__dict__ |= {"pool": lost, "training": lost}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    return lost


def told(session: Session) -> list[tuple[Any, ...]]:
    return [
        tuple(e[k] for k in ("stage", "cell", "event", "cause")) for e in read_events(session.events.path)
    ]


def test_a_group_that_is_begun_again_is_told_of_once_with_its_item(session: Session, lost: Lost) -> None:
    lost.generators.append(Failure(0.0, 1, "died"))
    lost.groups.append(Restart(1.0, "sft/seed=0", "rank 1: Traceback\nOSError: connection reset by peer\n"))
    session.tell_restarts()
    lost.groups.append(Restart(2.5, "rl/seed=0/sft_step=000004", "its workers were lost (node 1f)"))
    session.tell_restarts()
    session.tell_restarts()
    assert told(session) == [
        ("generator", "1", "restarted", "died"),
        ("sft", "seed=0", "restarted", "OSError: connection reset by peer"),
        ("rl", "seed=0/sft_step=000004", "restarted", "its workers were lost (node 1f)"),
    ]
    assert list(read_events(session.events.path))[-1]["time"] == "1970-01-01T00:00:02.500+00:00"


def test_a_long_sweep_tells_of_restarts_meanwhile(
    session: Session, lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = StageProgress("rl", 1, "updates")
    watch = SweepWatch(progress, session.study, session.files, session.events, session.tell_restarts)
    lost.groups.append(Restart(1.0, "rl/seed=0", "gone"))
    watch.on_step_end(1, [])
    assert told(session) == [], "not at every step"
    monkeypatch.setattr(sweep, "RESTARTS_SECONDS", 0.0)
    watch.on_step_end(2, [])
    assert told(session) == [("rl", "seed=0", "restarted", "gone")]


def test_losses_of_a_trial_do_not_add_up_while_its_branch_gets_on(session: Session) -> None:
    """Tune, whose count this is, gives up when it is too high."""
    progress = StageProgress("rl", 3, "updates")
    watch = SweepWatch(progress, session.study, session.files, session.events)
    branch, metadata = next(branches(session.study)), SimpleNamespace(num_failures=0)
    counts = []
    for step in (1, 2, 1, 2, 3):  # lost after the second update, and begun again: joined, it tells them again
        metadata.num_failures += 1
        result = {"config": {"branch": branch.plain()}, "rl_step": step, "updates": 1}
        watch.on_trial_result(1, [], SimpleNamespace(run_metadata=metadata), result)
        counts.append(metadata.num_failures)
    assert counts == [0, 0, 1, 2, 0]
    assert progress._done == 3, "what is told again is no progress"


class Gauge:
    """Keeps what was recorded last, by stage."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def record(self, value: float, stage: str) -> None:
        self.values[stage] = value


def test_controls_fail_with_their_branch_until_it_is_tried_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, files, units = session.study, session.files, session.units
    done, failed = Gauge(), Gauge()
    monkeypatch.setattr(branch_states, "CELLS_DONE", done)
    monkeypatch.setattr(branch_states, "CELLS_FAILED", failed)
    first, *others = branches(study)
    of_first = [control for control in controls(study) if beside(study, control) == first]
    assert of_first and others, "the study has too few cells for this test"
    record_cells(study, units, files)
    assert (done.values, failed.values) == ({"rl": 0, "control": 0}, {"rl": 0, "control": 0})
    note_failure(files, units.branch(first), "FloatingPointError")
    files.mark_done(units.branch(others[0]))
    record_cells(study, units, files)
    assert (done.values["rl"], failed.values) == (1, {"rl": 1, "control": len(of_first)})
    files.mark_done(units.branch(of_first[0]))
    record_cells(study, units, files)
    assert failed.values == {"rl": 1, "control": len(of_first) - 1}, "a control that is done has not failed"
    forget_failure(files, units.branch(first))
    record_cells(study, units, files)
    assert failed.values == {"rl": 0, "control": 0}
