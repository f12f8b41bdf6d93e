"""Live curves of SFT: loss, learning rate and gradient norm of every trunk, to the trackers that RL's curves go to."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlheals_ray.config import Study
from rlheals_ray.grid.tracking import Tracker, trackers
from rlheals_ray.lineage import Trunk
from rlheals_ray.storage import StudyFiles

_COLUMNS = ("loss", "learning_rate", "grad_norm")


def sft_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """What a trunk reported of an update, as `sft/loss` and so on; what is null or not finite is left out."""
    found = {name: row[name] for name in _COLUMNS if row.get(name) is not None}
    return {f"sft/{name}": float(value) for name, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True)
class TrunkRun:
    """A trunk in the form that Ray's loggers know runs by: what they ask of one of Tune's trials."""

    name: str
    local_path: str
    config: dict[str, Any] = field(default_factory=dict, compare=False)
    checkpoint: None = None

    def __str__(self) -> str:
        return self.name

    @property
    def trial_id(self) -> str:
        return self.name

    @property
    def experiment_dir_name(self) -> str:
        return "trunks"


class TrunkCurves:
    """The curves of the trunks that one run of the study trains, side by side from several threads."""

    def __init__(self, study: Study, files: StudyFiles) -> None:
        self._trackers: list[Tracker] = trackers(study, files)
        self._directory, self._lock = str(files.root / "tune" / "trunks"), threading.Lock()
        self._runs: dict[Trunk, TrunkRun] = {}
        for tracker in self._trackers:
            tracker.setup()

    def begin(self, trunk: Trunk) -> None:
        config = {"recipe": trunk.recipe, "seed": trunk.seed}
        name = f"sft-{trunk.recipe}-seed={trunk.seed}" if trunk.named else f"sft-seed={trunk.seed}"
        with self._lock:
            self._runs[trunk] = TrunkRun(name, self._directory, config)
            for tracker in self._trackers:
                tracker.log_trial_start(self._runs[trunk])

    def update(self, trunk: Trunk, row: Mapping[str, Any]) -> None:
        """Pass on what a trunk reported of update row["step"]."""
        if metrics := sft_metrics(row):
            with self._lock:
                for tracker in self._trackers:
                    tracker.log(self._runs[trunk], int(row["step"]), metrics)

    def end(self, trunk: Trunk, *, failed: bool) -> None:
        with self._lock:
            for tracker in self._trackers:
                tracker.log_trial_end(self._runs[trunk], failed)

    def close(self) -> None:
        """Wait for what is still to be sent."""
        for tracker in self._trackers:
            tracker.on_experiment_end([])
