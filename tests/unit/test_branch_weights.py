"""Which weights a branch asks the pool for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlheals_ray import lineage
from rlheals_ray.config import load_study
from rlheals_ray.models import nano
from rlheals_ray.rl.branch import Branch
from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.rollout.episode import Rollout, Weights
from rlheals_ray.storage import StudyFiles, Unit

TARGETS = [18, 24]


class Asked:
    """In place of a pool: notes the weights that it is asked for."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []

    def run(self, load: Any, requests: Any, sampling: Any, weights: Weights) -> Rollout:
        self.weights.append(weights)
        return Rollout([], "none", seconds=1.0, seconds_engine=0.5, seconds_judge=0.0, seconds_sync=0.0)


def test_an_attempt_s_weights_are_not_those_of_the_attempt_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rl.save_every > 1 an update is made again after a crash, perhaps with other episodes: a generator that
    holds what the dead attempt made of it must load."""
    context = SimpleNamespace(
        get_world_rank=lambda: 0, get_world_size=lambda: 1, get_experiment_name=lambda: "test"
    )
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    files, pool = StudyFiles(tmp_path), Asked()
    nano.save(nano.untrained(TARGETS, seed=0), TARGETS, files.checkpoint("start"))
    branch, unit = lineage.Branch(lineage.Trunk("plain", 1), 4, "ppo"), Unit("rl/b", "f")
    spec = BranchSpec(load_study("nano"), files, pool, branch, unit, "start")  # type: ignore[arg-type]
    for _ in range(2):
        attempt = Branch(spec, lambda _: None)
        for update in (1, 2):
            attempt.generate([], update, lambda: SimpleNamespace())  # type: ignore[arg-type, return-value]
    assert [weights.update for weights in pool.weights] == [0, 1, 0, 1]
    assert {weights.checkpoint for weights in pool.weights} == {"f"}
    assert len(set(pool.weights)) == 4
