"""Live curves: TensorBoard always, Weights & Biases and MLflow where the study asks for them.

Every logger gets the same: the numeric metrics of one update, at that update's number, under one name
per branch. What is null (the critic of an algorithm that has none) and what is text is left out.
A logger that fails is told of and dropped: `tables/rl.parquet` has everything, and RL goes on.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.logger import LoggerCallback
from ray.tune.result import TRAINING_ITERATION

from rlheals_ray import tables
from rlheals_ray.config import Study, WandbSettings
from rlheals_ray.storage import StudyFiles

_IDENTITY = ("recipe", "algorithm", "seed", "sft_step", "rl_step")

_GROUPS = {
    "outcome": ("reward_mean", "solved_at_1", "solved_at_k", "malformed"),
    "critic": ("explained_variance", "value_loss"),
    "advantage": tuple(column for column in tables.RL.names if column.startswith("advantage_")),
    "off_policy": ("weight_lag", *(column for column in tables.RL.names if column.startswith("logprob_"))),
    "speed": (
        "tokens", "episode_tokens", "tokens_per_second", "idle_share",
        *(column for column in tables.RL.names if column.startswith("seconds_")),
    ),
}  # fmt: skip
_GROUP_OF = {column: group for group, columns in _GROUPS.items() for column in columns}


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of tables/rl among what a trial reported, as `group/column`; empty for any other report."""
    found = {}
    for column in tables.RL.names:
        value = result.get(column)
        if column in _IDENTITY or isinstance(value, str) or value is None or not math.isfinite(value):
            continue
        found[f"{_GROUP_OF.get(column, 'policy')}/{column}"] = float(value)
    return found


class TensorBoardCurves(LoggerCallback):
    """Event files under `directory`, one run per branch, readable while the sweep runs.

    Ray's own TensorBoard logger writes to a staging directory and counts reports, so that a resumed branch
    would begin at 1 again, in another run. This one writes in place, each update whole, and an update
    that is repeated replaces its first take: TensorBoard drops what a restarted run had from there on.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writers: dict[str, Any] = {}

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Add the scalars of update `iteration`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        branch, now = str(trial), time.time()
        if branch not in self._writers:
            self._writers[branch] = EventFileWriter(str(self._directory / branch))
            start = SessionLog(status=SessionLog.START)
            self._writers[branch].add_event(Event(wall_time=now, step=iteration, session_log=start))
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in result.items()
            if name != TRAINING_ITERATION
        ]
        self._writers[branch].add_event(Event(wall_time=now, step=iteration, summary=Summary(value=values)))
        self._writers[branch].flush()

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Close the branch's event file."""
        if writer := self._writers.pop(str(trial), None):
            writer.close()


class Tracker(LoggerCallback):
    """Hands every update to `logger`, and nothing else; the logger's failure never becomes the sweep's."""

    def __init__(self, name: str, logger: LoggerCallback) -> None:
        self._name, self._logger, self._failed = name, logger, False

    def setup(self, stop: Any = None, num_samples: int | None = None, total_num_samples: int | None = None,
              **info: Any) -> None:  # fmt: skip
        """See `ray.tune.Callback`."""
        self._try(self._logger.setup, stop, num_samples, total_num_samples, **info)

    def log_trial_start(self, trial: Any) -> None:
        """Open the branch's run."""
        self._try(self._logger.log_trial_start, trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Pass on an update; reports that are none (the end of a trial) are kept back."""
        if metrics := metrics_of(result):
            self.log(trial, result["rl_step"], metrics)

    def log(self, trial: Any, update: int, metrics: Mapping[str, float]) -> None:
        """Pass on the metrics of update `update`."""
        self._try(self._logger.log_trial_result, update, trial, {TRAINING_ITERATION: update, **metrics})

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Close the branch's run."""
        self._try(self._logger.log_trial_end, trial, failed)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Wait for what is still to be sent."""
        self._try(self._logger.on_experiment_end, trials, **info)

    def _try(self, call: Callable[..., None], *arguments: Any, **named: Any) -> None:
        if self._failed:
            return
        try:
            call(*arguments, **named)
        except Exception as error:
            self._failed = True
            cause = " ".join(str(error).split()) or type(error).__name__
            print(
                f"tracking: {self._name} failed and gets nothing more ({cause}); RL goes on, tables/rl.parquet has all "
                "its metrics",
                file=sys.stderr,
            )


def trackers(study: Study, files: StudyFiles) -> list[Tracker]:
    """The loggers that the study asks for; their packages are there (preflight.check_tracking)."""
    wanted, found = study.tracking, []
    if wanted.tensorboard:
        found.append(Tracker("TensorBoard", TensorBoardCurves(files.root / "tune" / "tensorboard")))
    if wanted.wandb:
        found.append(Tracker("Weights & Biases", _wandb(study.name, wanted.wandb, files.root / "wandb")))
    if wanted.mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        # MLflow 3 refuses a plain directory, which the study names on purpose, unless it is told so.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        found.append(
            Tracker(
                "MLflow",
                MLflowLoggerCallback(
                    tracking_uri=wanted.mlflow.tracking_uri,
                    experiment_name=wanted.mlflow.experiment,
                    tags={"study": study.name, "algorithm": study.rl.algorithm},
                ),
            )
        )
    return found


def _wandb(group: str, wanted: WandbSettings, directory: Path) -> LoggerCallback:
    from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor

    class Flushing(_WandbLoggingActor):
        def run(self) -> None:
            """Ray's, but ends W&B's own process too: it writes its last records late, and Ray would kill it first."""
            super().run()
            self._wandb.teardown()

    class Wandb(WandbLoggerCallback):
        _logger_actor_cls = Flushing

    directory.mkdir(parents=True, exist_ok=True)
    if wanted.mode == "offline":
        os.environ["WANDB_MODE"] = "offline"  # Ray asks for a key otherwise, offline or not
    return Wandb(
        project=wanted.project, entity=wanted.entity, mode=wanted.mode, group=group, dir=str(directory)
    )
