"""rl.early_stop: a hopeless branch ends, the same after an interruption, and leaves nothing that it did not make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlheals_ray.config import load_study
from rlheals_ray.models import nano
from rlheals_ray.rl.ppo_learner import learn_ppo
from rlheals_ray.rollout.episode import EpisodeRequest, Rollout
from rlheals_ray.rollout.load import Load
from tests.learning import episode
from tests.unit.test_ppo_learner import BRANCH, TARGETS, Alone, Interrupted

OVERRIDES = [
    "rl.budgets=[0,2,8]", "rl.episodes=4", "rl.early_stop={updates: 3, solved_at_k: 0.25}",
]  # fmt: skip


class Failing(Alone):
    """Update 2 solves half of its problems, every other one a quarter."""

    def __init__(self, root: Path, directory: Path, interrupt: int | None = None) -> None:
        super().__init__(root, directory, interrupt)
        self.study = load_study("nano", OVERRIDES)
        self.settings = self.study.rl

    def generate(
        self, requests: Sequence[EpisodeRequest], update: int, publish: Callable[[], Load | None]
    ) -> Rollout:
        rollout = super().generate(requests, update, publish)
        solved = 2 if update == 2 else 1
        made = [episode(([1, 2], [3], 5.0 if n < solved else -1.0)) for n in range(4)]
        for one, real in zip(made, rollout.episodes, strict=True):
            real.turns[:] = one.turns
        return rollout


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("start")
    nano.save(nano.untrained(TARGETS, seed=0), TARGETS, directory)
    return directory


@pytest.mark.parametrize("interrupt", [None, 1, 2, 4, 5])
def test_it_stops_after_three_hopeless_updates_in_a_row(
    interrupt: int | None, start: Path, tmp_path: Path
) -> None:
    if interrupt is not None:
        with pytest.raises(Interrupted):
            learn_ppo(Failing(tmp_path, start, interrupt))
    branch: Any = Failing(tmp_path, start)
    learn_ppo(branch)
    assert [row["rl_step"] for row in branch.rows] == [1, 2, 3, 4, 5]
    assert "stopped early after update 5" in branch.hopeless and "rl.early_stop" in branch.hopeless
    files = branch.spec.files
    assert files.checkpoint(BRANCH.checkpoint(2)).exists()
    assert not files.checkpoint(BRANCH.checkpoint(8)).exists(), "a budget that it never came to"


def test_stopped_it_makes_no_further_update(start: Path, tmp_path: Path) -> None:
    learn_ppo(Failing(tmp_path, start))
    again = Failing(tmp_path, start, interrupt=6)
    learn_ppo(again)
    assert len(again.rows) == 5 and again.reports == []


def test_without_the_setting_no_branch_stops(start: Path, tmp_path: Path) -> None:
    branch = Failing(tmp_path, start)
    branch.settings = branch.settings.model_copy(update={"early_stop": None})
    learn_ppo(branch)
    assert len(branch.rows) == 8 and branch.hopeless is None
