"""The sweep: Ray Tune runs one trial per branch or control; RL budgets are read off along the trial.

A trial is a light process. It has its branch trained by a warm Ray Train worker group, passes every
update on to Tune, and then probes the branch's checkpoints through the pool.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.logger import JsonLoggerCallback

from rlheals_ray.config import Study
from rlheals_ray.event_log import EventLog, without_secrets
from rlheals_ray.grid.branch_states import failure, record_cells
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.tracking import trackers
from rlheals_ray.grid.trial import branch_trial, failed_elsewhere
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import Branch
from rlheals_ray.monitoring import record_update
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.training import Training

MAX_TRIAL_LOSSES = 5
"""How often a trial may lose its process without its branch getting further in between."""

RESTARTS_SECONDS = 30.0
"""How often restarts are told of while the sweep runs, at most."""


def sweep(
    study: Study,
    files: StudyFiles,
    pool: Pool,
    training: Training,
    pending: Sequence[Branch],
    progress: StageProgress,
    events: EventLog,
    tell_restarts: Callable[[], None],
) -> dict[str, str]:
    """Train and probe `pending`, RL before controls; returns the causes of those that failed, by unit name.

    tell_restarts: called now and then, to tell which processes were lost and begun again.
    """
    # Tune warns, a trial at a time, about metrics that we do not use for scheduling, and prints the traceback of each
    # that failed: the study tells that at its end, with its log.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own handler would turn Ctrl-C into a normal end, and the study would go on without the branches.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Its own loggers would write a second TensorBoard run per branch, and tables/rl.parquet once more as CSV.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # Trials start in this order, and a control waits for its RL branch: that one must have a place already.
    ordered = sorted(pending, key=lambda branch: branch.is_control)
    trial = tune.with_parameters(branch_trial, study=study, files=files, pool=pool, training=training)
    tuner = tune.Tuner(
        # Trials only wait for others: they must not compete with the workers and engines for CPUs.
        tune.with_resources(trial, {"CPU": 0.01}),
        param_space={"branch": tune.grid_search([branch.plain() for branch in ordered])},
        tune_config=tune.TuneConfig(
            # One trial more than groups: while one probes, the groups go on learning.
            max_concurrent_trials=len(training.groups) + 1,
            reuse_actors=True,
            trial_name_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=f"{study.name}-branches",
            storage_path=str(files.root / "tune"),
            verbose=0,
            # A trial's process or node that is lost is no failure of its branch: another trial joins what is under way.
            failure_config=tune.FailureConfig(max_failures=MAX_TRIAL_LOSSES),
            callbacks=[
                SweepWatch(progress, study, files, events, tell_restarts),
                JsonLoggerCallback(),
                *trackers(study, files),
            ],
        ),
    )
    failures = {}
    for result in tuner.fit():
        if result.error is not None:
            failures[Branch.of(result.config["branch"]).name] = without_secrets(str(result.error))
    return failures


def _trial_name(trial: Any) -> str:
    return Branch.of(trial.config["branch"]).run


def _error(trial: Any) -> str:
    """What ended the trial's process, as far as Tune can still tell."""
    try:
        return str(trial.get_error() or "")
    except Exception:  # it is unpickled, and may be of a class that is not known here
        return "its cause cannot be read"


class SweepWatch(tune.Callback):
    """Shows the sweep's progress as trials report; tells the log and the metrics."""

    def __init__(
        self,
        progress: StageProgress,
        study: Study,
        files: StudyFiles,
        events: EventLog,
        tell_restarts: Callable[[], None] = lambda: None,
    ) -> None:
        self._progress, self._files, self._events = progress, files, events
        self._study, self._units = study, StudyUnits(study)
        self._tell_restarts, self._told = tell_restarts, time.monotonic()
        self._begun: set[Unit] = set()
        self._furthest: dict[str, int] = {}
        """Of each branch, the last update that its trials have told of."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks to restore them later; this one belongs to the running process.
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._told > RESTARTS_SECONDS:
            self._tell_restarts()
            self._told = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        unit = self._unit(trial)
        if not self._files.is_done(unit):  # else only its probes are due
            self._begun.add(unit)
            self._events.unit(unit.name, "resumed" if self._files.state(unit).exists() else "started")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        branch = Branch.of(result["config"]["branch"])
        if branch.is_control:
            note = f"{branch.label}: loss {result.get('policy_loss', 0):.3f}"
        else:
            note = f"{branch.label}: solved@1 {result.get('solved_at_1', 0):.2f}"
        record_update(branch.name, result)
        updates = 0  # what is repeated after a loss is no progress
        if (step := result.get("rl_step", 0)) > self._furthest.get(branch.name, 0):
            self._furthest[branch.name], updates = step, result.get("updates", 0)
            trial.run_metadata.num_failures = 0  # Tune counts over the trial's whole life
        self._progress.advance(updates, note if result.get("updates") else "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # A control may be waiting for this branch.
        unit = self._unit(trial)
        failed_elsewhere(self._files, unit, _error(trial))
        self._events.unit(unit.name, "failed", cause=self._cause(unit) or _error(trial))
        self._count()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        unit = self._unit(trial)
        if failure(self._files, unit) is None:  # else the branch itself failed, and this changes nothing
            self._events.unit(unit.name, "restarted", cause=_error(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        unit = self._unit(trial)
        if not self._files.is_done(unit):
            self._events.unit(unit.name, "failed", cause=self._cause(unit) or "its RL branch failed")
        elif unit in self._begun:
            self._events.unit(unit.name, "done")
        self._count()

    def _unit(self, trial: Any) -> Unit:
        return self._units.branch(Branch.of(trial.config["branch"]))

    def _cause(self, unit: Unit) -> str | None:
        failed = failure(self._files, unit)
        return failed["cause"] if failed else None

    def _count(self) -> None:
        record_cells(self._study, self._units, self._files)
