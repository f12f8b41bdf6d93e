"""What is learnt from episodes of several turns: by SFT, by rejection, by PPO, by GRPO and RLOO."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlheals_ray.config import RLSettings
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.models.nano import tokenizer
from rlheals_ray.rl.batch import batch_of
from rlheals_ray.rl.rejection import _example, _row
from rlheals_ray.rl.trl_episodes import Completions
from rlheals_ray.rollout.episode import Episode
from rlheals_ray.sft.data import IGNORE, demonstrate
from tests.learning import learner, on_policy, tiny_llama
from tests.stepwise import TASK, play, write_stepwise_model
from tests.trl_learning import learn, with_logprobs


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stepwise_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module")
def chat(directory: Path) -> ChatFormat:
    return ChatFormat.of(directory)


def test_a_demonstration_is_the_episode_without_failures(chat: ChatFormat) -> None:
    for episode in play(chat, lambda step: 0):
        example = demonstrate(TASK, chat, episode.problem, seed=0)
        ids, labels = [], []
        for turn in episode.turns:
            ids += turn.prompt_ids + turn.completion_ids
            labels += [IGNORE] * len(turn.prompt_ids) + turn.completion_ids
        assert (example.input_ids, example.labels) == (ids, labels)


def test_rejection_learns_the_right_answers_of_a_solved_episode_alone(chat: ChatFormat) -> None:
    for episode in play(chat, lambda step: step % 2):
        made = _example(_row(3, episode), {episode.problem.id: episode.problem})
        at = 0
        for turn in episode.turns:
            at += len(turn.prompt_ids)
            right = turn.verdict.accepted or turn.verdict.solved
            labels = made.labels[at : at + len(turn.completion_ids)]
            assert labels == (turn.completion_ids if right else [IGNORE] * len(labels))
            assert made.input_ids[at : at + len(turn.completion_ids)] == turn.completion_ids
            at += len(turn.completion_ids)
        learnt = sum(label != IGNORE for label in made.labels)
        assert at == len(made.labels) and learnt == sum(
            len(t.completion_ids) for t in episode.turns if t.verdict.reward > 0
        )
    assert _row(3, play(chat, lambda step: 2)[0])["ids"] is None


def test_a_batch_is_as_wide_as_its_longest_episode(chat: ChatFormat) -> None:
    made = play(chat, lambda step: 1)
    batch, longest = batch_of(made, max_attempts=2), max(len(episode.turns) for episode in made)
    assert batch.rewards.shape == batch.exists.shape == (2, longest)
    assert batch.exists.sum(1).tolist() == [len(episode.turns) for episode in made]
    assert batch.own.sum().item() == sum(episode.tokens for episode in made)
    # Never narrower than the attempts: tasks of single answers have the tensors that they had.
    assert batch_of(made, max_attempts=longest + 3).rewards.shape == (2, longest + 3)


def small(made: list[Episode]) -> list[Episode]:
    """The episodes with ids of the tiny vocabulary."""
    turns = [[replace(t, prompt_ids=[i % 17 for i in t.prompt_ids], completion_ids=[i % 17 for i in t.completion_ids])
              for t in episode.turns] for episode in made]  # fmt: skip
    return [replace(episode, turns=some) for episode, some in zip(made, turns, strict=True)]


@pytest.mark.parametrize("level", ["turn", "token"])
def test_ppo_learns_from_every_step(chat: ChatFormat, level: str) -> None:
    made = small([*play(chat, lambda step: 1), *play(chat, lambda step: int(step == 1))])
    settings = RLSettings(episodes=4, max_attempts=2, level=level, minibatches=2)
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = learner(model, settings).update(on_policy(model, made, settings), 1)
    assert all(metrics[name] == metrics[name] for name in ("policy_loss", "value_loss", "entropy"))
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_grpo_and_rloo_take_the_whole_episode_and_mask_what_is_told(chat: ChatFormat) -> None:
    made = play(chat, lambda step: 1)
    found = Completions.of(made, gamma=0.9)
    for episode, ids, mask, paid in zip(
        made, found.completion_ids, found.env_mask, found.returns, strict=True
    ):
        expected: list[tuple[int, int]] = []
        for k, turn in enumerate(episode.turns):
            expected += [(token, 0) for token in (turn.prompt_ids if k else [])]
            expected += [(token, 1) for token in turn.completion_ids]
        assert list(zip(ids, mask, strict=True)) == expected
        assert paid == pytest.approx(sum(0.9**k * (1 if k % 2 else -1) for k in range(len(episode.turns))))


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_trl_learns_from_groups_of_such_episodes(chat: ChatFormat, algorithm: str) -> None:
    """Of one problem four episodes that fail at other steps; the formulas are those of test_trl_trainers.py."""
    played = [play(chat, lambda step, n=n: int(step == n), attempts=1 + (n < 3)) for n in range(4)]  # type: ignore[misc]
    made = small([episode for group in zip(*played, strict=True) for episode in group])
    assert [episode.solved_at for episode in made[:4]] == [2, 2, 2, None]
    settings = RLSettings(
        algorithm=algorithm, episodes=8, group_size=4, budgets=(1,), max_attempts=2, max_grad_norm=1e6
    )
    steps = learn(settings, lambda _: with_logprobs(made, tiny_llama(), 1.0), tokenizer([18, 24]))
    assert math.isfinite(float(steps.logs[0]["loss"]))
    assert all(torch.isfinite(gradient).all() for gradient in steps.gradients[0].values())
    assert any(gradient.abs().max() > 0 for gradient in steps.gradients[0].values())
