"""Metrics of a study for Prometheus, through Ray's own exporter (`ray.util.metrics`).

A value is recorded where it arises: in the driver, or in a generator. Without a Ray connection recording
does nothing, and it never raises: training does not end because of a graph. No tag's values are more than
a study's stages and cells; problems are never tags.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_logger = logging.getLogger("ray.rlheals_ray.monitoring")
_lock = threading.Lock()
_exporters: dict[str, Any] = {}
"""Ray's counters and gauges of this process; they outlast a disconnection."""
_study = ""

PREFIX = "ray_"
"""What Ray puts before every exported name."""


@dataclass(frozen=True)
class Metric:
    """One exported quantity. A counter only grows and counts from 0 in every process; a gauge is the last value."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    tags: tuple[str, ...]
    meaning: str
    """In ASCII: Ray takes no other description."""

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return PREFIX + self.name

    def record(self, value: float | None, **tags: str) -> None:
        """Set a gauge to `value`, or add it to a counter; None and what is not finite are left out.

        tags: every one of `self.tags` but `study`, which `serve_study` has said.
        """
        ray = sys.modules.get("ray")  # who has not imported it is not connected, and need not wait for it
        if value is None or ray is None:
            return
        try:
            if not ray.is_initialized():
                return
            value = float(value)
            if math.isfinite(value) and (self.kind == "gauge" or value > 0):
                exporter = self._exporter()
                (exporter.set if self.kind == "gauge" else exporter.inc)(value, {"study": _study, **tags})
        except Exception:
            _logger.debug("%s was not recorded", self.name, exc_info=True)

    def _exporter(self) -> Any:
        with _lock:
            if self.name not in _exporters:
                from ray.util.metrics import Counter, Gauge

                made = Counter if self.kind == "counter" else Gauge
                _exporters[self.name] = made(self.name, description=self.meaning, tag_keys=self.tags)
            return _exporters[self.name]


def serve_study(name: str) -> None:
    """Say which study this process works for: the tag `study` of all that it records from now on."""
    global _study
    _study = name


_STAGE, _CELL = ("study", "stage"), ("study", "stage", "cell")

# fmt: off
TOKENS = Metric("rlheals_tokens_total", "counter", "tokens", _STAGE,
                "written by the model, in finished episodes")
EPISODES = Metric("rlheals_episodes_total", "counter", "episodes", _STAGE, "finished")
ENGINE_SECONDS = Metric("rlheals_engine_seconds_total", "counter", "seconds", _STAGE,
                        "that generators spent inside their engines")
STAGE_DONE = Metric("rlheals_stage_done", "gauge", "units of work", _STAGE,
                    "done, with what earlier runs had done")
STAGE_UNITS = Metric("rlheals_stage_units", "gauge", "units of work", _STAGE,
                     "of the stage in all: updates, checkpoints or matrices")
CELLS_DONE = Metric("rlheals_cells_done", "gauge", "cells", _STAGE,
                    "branches (stage rl) and controls (stage control) that are done")
CELLS_FAILED = Metric("rlheals_cells_failed", "gauge", "cells", _STAGE,
                      "branches and controls that failed, and were not tried again since")
SOLVED_AT_1 = Metric("rlheals_solved_at_1", "gauge", "share", _CELL,
                     "of the update's episodes that were solved at the first attempt")
APPROX_KL = Metric("rlheals_approx_kl", "gauge", "nats", _CELL,
                   "KL of the generator to the policy after the update, per token")
WEIGHT_LAG = Metric("rlheals_weight_lag", "gauge", "updates", _CELL,
                    "by which the engines' weights trailed the learner's; 0 always")
SYNC_SECONDS = Metric("rlheals_sync_seconds", "gauge", "seconds", _CELL,
                      "of the update, until the generators served the new weights")
GENERATE_SECONDS = Metric("rlheals_generate_seconds", "gauge", "seconds", _CELL,
                          "of the update, from the first request to the last finished episode")
LEARN_SECONDS = Metric("rlheals_learn_seconds", "gauge", "seconds", _CELL,
                       "of the update, forward, backward and optimiser")
GENERATOR_IDLE_SHARE = Metric("rlheals_generator_idle_share", "gauge", "share", _CELL,
                              "of the update in which the branch's generators were outside their engines")
# fmt: on

METRICS = (
    TOKENS, EPISODES, ENGINE_SECONDS, STAGE_DONE, STAGE_UNITS, CELLS_DONE, CELLS_FAILED, SOLVED_AT_1, APPROX_KL,
    WEIGHT_LAG, SYNC_SECONDS, GENERATE_SECONDS, LEARN_SECONDS, GENERATOR_IDLE_SHARE,
)  # fmt: skip
"""All of them; docs/monitoring.md holds the same table."""

UPDATE_COLUMNS: dict[str, Metric] = {
    "solved_at_1": SOLVED_AT_1,
    "approx_kl": APPROX_KL,
    "weight_lag": WEIGHT_LAG,
    "seconds_sync": SYNC_SECONDS,
    "seconds_generate": GENERATE_SECONDS,
    "seconds_learn": LEARN_SECONDS,
    "idle_share": GENERATOR_IDLE_SHARE,
}
"""Columns of tables/rl that are gauges too."""


def place_of(name: str) -> tuple[str, str]:
    """Stage and cell in the name of a unit: `rl/seed=0/sft_step=000004` is (`rl`, `seed=0/sft_step=000004`)."""
    stage, _, cell = name.partition("/")
    return stage, cell


def record_update(name: str, row: Mapping[str, Any]) -> None:
    """Record what the branch `name` reported of an update: a row of tables/rl."""
    stage, cell = place_of(name)
    for column, metric in UPDATE_COLUMNS.items():
        metric.record(row.get(column), stage=stage, cell=cell)


def stage_of(purpose: object) -> str:
    """The stage that episodes are for, by what their seed begins with: `probe`, `hidden`, or else `rl`."""
    return str(purpose) if purpose in ("probe", "hidden") else "rl"


def record_generated(purpose: object, episodes: int, tokens: int, engine_seconds: float) -> None:
    """Record finished episodes, and the seconds inside the engine since those before; purpose: see `stage_of`."""
    stage = stage_of(purpose)
    EPISODES.record(episodes, stage=stage)
    TOKENS.record(tokens, stage=stage)
    ENGINE_SECONDS.record(engine_seconds, stage=stage)
