"""Live curves: every number of an update reaches every logger once, at its update, under its branch's name."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from ray.tune.logger import LoggerCallback
from ray.tune.result import TRAINING_ITERATION
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from rlheals_ray import tables
from rlheals_ray.config import load_study
from rlheals_ray.grid.tracking import TensorBoardCurves, Tracker, metrics_of, trackers
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.storage import StudyFiles


class Trial:
    """What a logger asks a trial for: its name."""

    def __init__(self, seed: int, sft_step: int) -> None:
        self._name = Branch(Trunk("plain", seed), sft_step, "grpo").run

    def __str__(self) -> str:
        return self._name


def report(update: int, **metrics: Any) -> dict[str, Any]:
    """What a trial reports after an update: the whole row, and what Tune adds."""
    row = {**dict.fromkeys(tables.RL.names), "algorithm": "grpo", "seed": 0, "sft_step": 4, "rl_step": update}
    return {**row, "engine": "vllm", "updates": 1, "done": False, "time_total_s": 3.0, **metrics}


def curves(directory: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """As TensorBoard itself reads them: run to tag to (step, value)."""
    read = EventMultiplexer().AddRunsFromDirectory(str(directory)).Reload()
    return {
        run: {
            tag: [(event.step, event.value) for event in read.Scalars(run, tag)] for tag in content["scalars"]
        }
        for run, content in read.Runs().items()
    }


def tensorboard(directory: Path) -> Tracker:
    return Tracker("TensorBoard", TensorBoardCurves(directory))


def test_every_number_of_a_row_is_a_metric_and_nothing_else_is() -> None:
    kinds = {field.name: str(field.type) for field in tables.RL}
    row = {name: "text" if kind == "string" else 1 for name, kind in kinds.items()}
    metrics = metrics_of({**row, "updates": 1, "done": False, "pid": 7})
    identity = {"seed", "sft_step", "rl_step"}
    expected = {name for name, kind in kinds.items() if kind != "string"} - identity
    assert {name.partition("/")[2] for name in metrics} == expected
    assert set(metrics.values()) == {1.0}


def test_what_is_null_or_not_finite_is_left_out() -> None:
    metrics = metrics_of(
        report(1, entropy=0.5, grad_norm=float("nan"), value_loss=None, approx_kl=float("inf"))
    )
    assert metrics == {"policy/entropy": 0.5}
    assert metrics_of({"updates": 0, "training_iteration": 4}) == {}


def test_each_branch_is_one_run_that_tensorboard_reads(tmp_path: Path) -> None:
    logger = tensorboard(tmp_path)
    branches = [Trial(0, 4), Trial(1, 120)]
    for update in (1, 2, 3):
        for seed, trial in enumerate(branches):
            logger.log_trial_result(99, trial, report(update, reward_mean=seed + update / 10, tokens=100))
    for trial in branches:
        logger.log_trial_result(99, trial, {"updates": 0})  # the end of a trial is no update
        logger.log_trial_end(trial)
    found = curves(tmp_path)
    assert set(found) == {"grpo-seed=0-sft_step=000004", "grpo-seed=1-sft_step=000120"}
    first = found["grpo-seed=0-sft_step=000004"]
    assert set(first) == {"outcome/reward_mean", "speed/tokens"}
    assert first["outcome/reward_mean"] == [
        (1, pytest.approx(0.1)),
        (2, pytest.approx(0.2)),
        (3, pytest.approx(0.3)),
    ]


@pytest.mark.parametrize("last", [3, 2], ids=["went on", "repeated an update"])
def test_a_resumed_branch_goes_on_in_its_curve(tmp_path: Path, last: int) -> None:
    """The process that was killed had logged three updates; the last saved one may be older."""
    trial = Trial(0, 4)
    killed, resumed = tensorboard(tmp_path), tensorboard(tmp_path)
    for update in (1, 2, 3):
        killed.log_trial_result(0, trial, report(update, entropy=1.0))
    time.sleep(1)  # TensorBoard reads files in the order of their names, which begin with whole seconds
    for update in range(last + 1, 6):
        resumed.log_trial_result(0, trial, report(update, entropy=2.0))
    resumed.log_trial_end(trial)
    [run] = curves(tmp_path).values()
    assert run["policy/entropy"] == [(step, 1.0 if step <= last else 2.0) for step in range(1, 6)]


def test_a_branch_done_again_begins_its_curve_anew(tmp_path: Path) -> None:
    trial = Trial(0, 4)
    for entropy, updates in ((1.0, 4), (2.0, 2)):
        logger = tensorboard(tmp_path)
        time.sleep(1)
        for update in range(1, updates + 1):
            logger.log_trial_result(0, trial, report(update, entropy=entropy))
        logger.log_trial_end(trial)
    [run] = curves(tmp_path).values()
    assert run["policy/entropy"] == [(1, 2.0), (2, 2.0)]


class Breaks(LoggerCallback):
    """A logger whose server goes away after its first result."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, Any]]] = []

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        if self.seen:
            raise ConnectionError("the server\nis gone")
        self.seen.append((iteration, result))


def test_a_logger_that_fails_is_told_of_once_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    logger = Breaks()
    tracker = Tracker("MLflow", logger)
    tracker.log_trial_start(Trial(0, 4))
    for update in (7, 8, 9):
        tracker.log_trial_result(update - 6, Trial(0, 4), report(update, entropy=1.0))
    tracker.on_experiment_end([])
    assert logger.seen == [(7, {TRAINING_ITERATION: 7, "policy/entropy": 1.0})]
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "MLflow failed" in err and "the server is gone" in err


def test_what_is_tracked_is_what_the_study_says(tmp_path: Path) -> None:
    on, off = load_study("tiny"), load_study("tiny", ["tracking.tensorboard=false"])
    assert len(trackers(on, StudyFiles(tmp_path))) == 1
    assert trackers(off, StudyFiles(tmp_path)) == []


def test_every_column_of_the_table_is_explained() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    # Columns of one family stand as `first`, `_second`.
    words = set(re.findall(r"[a-z_0-9]+", page))
    missing = [
        name for name in tables.RL.names if name not in words and f"_{name.rpartition('_')[2]}" not in words
    ]
    assert missing == []
