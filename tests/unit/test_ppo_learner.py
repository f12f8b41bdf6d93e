"""A branch trained by PPO, but for its engines: saves, budgets, and that an interruption changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rlheals_ray import lineage
from rlheals_ray.config import load_study
from rlheals_ray.models import nano
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.rl.branch import Branch
from rlheals_ray.rl.ppo_learner import learn_ppo
from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.rollout.episode import EpisodeRequest, Rollout, Weights
from rlheals_ray.rollout.load import Load
from rlheals_ray.storage import StudyFiles, Unit
from tests.learning import random_episodes

TARGETS = [18, 24]
OVERRIDES = [
    "rl.budgets=[0,3,5]", "rl.episodes=8", "rl.minibatches=2", "rl.epochs=2", "rl.save_every=2",
    "rl.lr_schedule=linear", "rl.kl_coefficient=0.1", "rl.critic_warmup=1",
]  # fmt: skip
MEASURED = ("tokens_per_second", "seconds_learn", "idle_share")


class Interrupted(Exception):
    """What a test does to a branch."""


BRANCH = lineage.Branch(lineage.Trunk("plain", 1), 4, "ppo")


class Alone(Branch):
    """A branch in this process: no worker group, and invented episodes in place of an engine's."""

    def __init__(self, root: Path, directory: Path, interrupt: int | None = None) -> None:
        self.study = load_study("nano", OVERRIDES)
        self.settings = self.study.rl
        no_pool: Any = None
        self.spec = BranchSpec(self.study, StudyFiles(root), no_pool, BRANCH, Unit("rl/b", "f"), "-")
        self.rank, self.world_size, self.train_run = 0, 1, "test"
        self.start_directory = directory
        self.tokenizer = ChatFormat.of(directory).tokenizer
        self.rows, self.received = [], {}
        self.reports: list[int] = []
        self._report = lambda row: self.reports.append(row["update"])
        self._interrupt = interrupt

    def requests(self, update: int) -> list[EpisodeRequest]:
        return []

    def generate(
        self, requests: Sequence[EpisodeRequest], update: int, publish: Callable[[], Load | None]
    ) -> Rollout:
        if update == self._interrupt:
            raise Interrupted
        made = random_episodes(self.settings.episodes, self.settings.max_attempts, seed=update)
        episodes = [replace(one, weights=Weights("f", update - 1)) for one in made]
        return Rollout(episodes, "none", seconds=1.0, seconds_engine=0.5, seconds_judge=0.0, seconds_sync=0.0)

    def outcome(self) -> tuple[dict[int, Any], list[dict[str, Any]]]:
        """Weights at each budget, and the rows without what was timed."""
        weights = {
            budget: load_file(self.spec.files.checkpoint(BRANCH.checkpoint(budget)) / "model.safetensors")
            for budget in self.settings.budgets[1:]
        }
        rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in self.rows]
        return weights, rows


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("start")
    nano.save(nano.untrained(TARGETS, seed=0), TARGETS, directory)
    return directory


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The uninterrupted branch."""
    branch = Alone(tmp_path_factory.mktemp("whole"), start)
    learn_ppo(branch)
    return branch


def test_every_update_is_recorded_once_and_every_budget_published(whole: Alone) -> None:
    weights, rows = whole.outcome()
    assert [row["rl_step"] for row in rows] == whole.reports == [1, 2, 3, 4, 5]
    assert weights.keys() == {3, 5}
    # The first update is the critic's alone; then the rate falls in a line to 0 after the last budget.
    rate = whole.settings.learning_rate
    assert [row["learning_rate"] / rate for row in rows] == pytest.approx([0, 0.8, 0.6, 0.4, 0.2])
    assert all(row["reference_kl"] is not None and row["wrapped_model"] == "LlamaForCausalLM" for row in rows)


@pytest.mark.parametrize(("at", "resumes"), [(2, 1), (4, 4), (5, 5)])
def test_interrupted_and_resumed_it_is_the_same_branch(
    at: int, resumes: int, whole: Alone, start: Path, tmp_path: Path
) -> None:
    """Saved after updates 2 and 4 (every second one), and after 3 and 5, which are budgets."""
    with pytest.raises(Interrupted):
        learn_ppo(Alone(tmp_path, start, interrupt=at))
    resumed = Alone(tmp_path, start)
    learn_ppo(resumed)
    assert resumed.reports[0] == resumes
    weights, rows = resumed.outcome()
    expected_weights, expected_rows = whole.outcome()
    assert rows == expected_rows and resumed.received == whole.received
    for budget, tensors in expected_weights.items():
        assert all(weights[budget][name].equal(value) for name, value in tensors.items())
