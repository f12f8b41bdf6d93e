"""A branch trained by GRPO or RLOO, but for its engines: saves, budgets, and that an interruption changes nothing."""

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
from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.rl.trl_learner import learn_trl
from rlheals_ray.rollout.episode import EpisodeRequest, Rollout, Weights
from rlheals_ray.rollout.load import Load
from rlheals_ray.storage import StudyFiles, Unit
from tests.learning import random_episodes
from tests.trl_learning import with_logprobs

TARGETS = [18, 24]
OVERRIDES = [
    "rl.budgets=[0,3,4]", "rl.episodes=8", "rl.group_size=4", "rl.minibatches=2", "rl.epochs=2",
    "rl.micro_batch=2", "rl.save_every=2", "rl.lr_schedule=linear", "rl.kl_coefficient=0.1",
]  # fmt: skip
MEASURED = ("tokens_per_second", "seconds_learn", "idle_share")


class Interrupted(Exception):
    """What a test does to a branch."""


BRANCH = lineage.Branch(lineage.Trunk("plain", 1), 4, "ppo")


class Alone(Branch):
    """A branch in this process: no worker group, and invented episodes in place of an engine's."""

    def __init__(self, root: Path, directory: Path, algorithm: str, interrupt: int | None = None) -> None:
        self.study = load_study("nano", [*OVERRIDES, f"rl.algorithm={algorithm}"])
        self.settings = self.study.rl
        self.spec = BranchSpec(self.study, StudyFiles(root), None, BRANCH, Unit("rl/b", "f"), "-")  # type: ignore[arg-type]
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
        scored = with_logprobs(made, nano.untrained(TARGETS, seed=0), self.settings.temperature)
        episodes = [replace(one, weights=Weights("f", update - 1)) for one in scored]
        return Rollout(episodes, "none", seconds=1.0, seconds_engine=0.5, seconds_judge=0.0, seconds_sync=0.0)

    def outcome(self) -> tuple[dict[int, Any], list[dict[str, Any]]]:
        """Weights at each budget, and the rows without what was timed."""
        published = {
            budget: self.spec.files.checkpoint(BRANCH.checkpoint(budget))
            for budget in self.settings.budgets[1:]
        }
        weights = {budget: load_file(path / "model.safetensors") for budget, path in published.items()}
        rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in self.rows]
        return weights, rows


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("start")
    nano.save(nano.untrained(TARGETS, seed=0), TARGETS, directory)
    return directory


@pytest.fixture(scope="module", params=["grpo", "rloo"])
def whole(request: pytest.FixtureRequest, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The uninterrupted branch."""
    branch = Alone(tmp_path_factory.mktemp("whole"), start, request.param)
    learn_trl(branch)
    return branch


def test_every_update_is_recorded_once_and_every_budget_published(whole: Alone, start: Path) -> None:
    weights, rows = whole.outcome()
    assert [row["rl_step"] for row in rows] == whole.reports == [1, 2, 3, 4]
    rate = whole.settings.learning_rate
    assert [row["learning_rate"] / rate for row in rows] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert all(row["reference_kl"] is not None and row["explained_variance"] is None for row in rows)
    assert rows[0]["reference_kl"] == pytest.approx(0, abs=1e-9) and rows[-1]["reference_kl"] > 0
    assert rows[0]["wrapped_model"] == "LlamaForCausalLM"
    began = load_file(start / "model.safetensors")
    for budget, tensors in weights.items():
        assert tensors.keys() == began.keys(), "a published checkpoint has other tensors than its start"
        assert not tensors["model.embed_tokens.weight"].equal(began["model.embed_tokens.weight"]), budget


@pytest.mark.parametrize(("at", "resumes"), [(2, 1), (4, 4)])
def test_interrupted_and_resumed_it_is_the_same_branch(
    at: int, resumes: int, whole: Alone, start: Path, tmp_path: Path
) -> None:
    """Saved after update 2 (every second one) and after 3 (a budget)."""
    algorithm = whole.settings.algorithm
    with pytest.raises(Interrupted):
        learn_trl(Alone(tmp_path, start, algorithm, interrupt=at))
    resumed = Alone(tmp_path, start, algorithm)
    learn_trl(resumed)
    assert resumed.reports[0] == resumes
    weights, rows = resumed.outcome()
    expected_weights, expected_rows = whole.outcome()
    assert rows == expected_rows and resumed.received == whole.received
    for budget, tensors in expected_weights.items():
        assert all(weights[budget][name].equal(value) for name, value in tensors.items())


def test_a_branch_that_had_made_its_last_update_makes_no_other(whole: Alone, start: Path) -> None:
    again = Alone(whole.spec.files.root, start, whole.settings.algorithm, interrupt=5)
    learn_trl(again)
    assert again.reports == [] and again.rows == whole.rows


def test_a_state_that_was_not_written_to_its_end_is_not_taken_up(
    whole: Alone, start: Path, tmp_path: Path
) -> None:
    branch = Alone(tmp_path, start, whole.settings.algorithm, interrupt=1)
    (branch.state_directory / "checkpoint-8").mkdir(parents=True)
    with pytest.raises(Interrupted):
        learn_trl(branch)
    assert branch.rows == []
