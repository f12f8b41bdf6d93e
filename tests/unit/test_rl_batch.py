"""Episodes as tensors: exactly the engine's ids; the environment's tokens never teach anything."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rlheals_ray.config import RLSettings
from rlheals_ray.rl.actions import actions_of, per_action
from rlheals_ray.rl.batch import batch_of
from rlheals_ray.rl.losses import policy_loss, reference_penalty
from tests.learning import HIDDEN, VOCABULARY, episode, random_episodes, scores, tiny_llama

EPISODES = [
    episode(([1, 2, 3], [4, 5], -3.0), ([6, 7], [8, 9, 10], 5.0)),
    episode(([1, 2], [11], 5.0)),
]


def test_ids_are_the_turns_one_after_the_other() -> None:
    batch = batch_of(EPISODES, max_attempts=3)
    assert batch.ids.tolist()[0] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert batch.ids.tolist()[1][:3] == [1, 2, 11]
    assert batch.ids.dtype == torch.int64 and batch.ids.shape == (2, 10)


def test_every_token_is_one_turn_s_or_the_environment_s() -> None:
    batch = batch_of(EPISODES, max_attempts=3)
    assert batch.turn_of.tolist() == [
        [-1, -1, -1, 0, 0, -1, -1, 1, 1, 1],
        [-1, -1, 0, -1, -1, -1, -1, -1, -1, -1],
    ]


def test_turns_have_their_state_reward_and_existence() -> None:
    batch = batch_of(EPISODES, max_attempts=3)
    assert batch.exists.tolist() == [[True, True, False], [True, False, False]]
    assert batch.rewards.tolist() == [[-3, 5, 0], [5, 0, 0]]
    assert batch.prompt_end.tolist() == [[2, 6, 0], [1, 0, 0]]


def test_logprobs_stand_at_their_tokens() -> None:
    batch = batch_of(EPISODES, max_attempts=3)
    expected = [[0, 0, 0, -0.1, -0.2, 0, 0, -0.1, -0.2, -0.3], [0, 0, -0.1, 0, 0, 0, 0, 0, 0, 0]]
    torch.testing.assert_close(batch.logprobs, torch.tensor(expected))


def test_rows_are_episodes() -> None:
    batch = batch_of(random_episodes(5, 3), max_attempts=3)
    part = batch.rows(torch.tensor([3, 1]))
    for name in batch.__dataclass_fields__:
        assert torch.equal(getattr(part, name), getattr(batch, name)[[3, 1]])


def test_sums_over_turns_are_those_of_a_loop() -> None:
    episodes = random_episodes(20, 3)
    batch = batch_of(episodes, max_attempts=3)
    values = torch.randn(batch.ids.shape, dtype=torch.float64)
    expected = np.zeros((20, 3))
    for row, made in enumerate(episodes):
        at = 0
        for k, turn in enumerate(made.turns):
            at += len(turn.prompt_ids)
            expected[row, k] = values[row, at : at + len(turn.completion_ids)].sum()
            at += len(turn.completion_ids)
    np.testing.assert_allclose(per_action(values, batch.turn_of, 3), expected, atol=1e-12)


# --- scored by a model


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_those_of_each_episode_alone(temperature: float) -> None:
    """Neither padding nor a neighbour changes an episode: against one unpadded episode at a time, in float64."""
    model, episodes = tiny_llama(), random_episodes(6, 3)
    batch = batch_of(episodes, max_attempts=3)
    scored = scores(model, batch, RLSettings(temperature=temperature))
    reference = tiny_llama().double()
    entropy = 0.0
    for row, made in enumerate(episodes):
        ids = [token for turn in made.turns for token in turn.prompt_ids + turn.completion_ids]
        output = reference(input_ids=torch.tensor([ids]), output_hidden_states=True)
        distribution = torch.log_softmax(output.logits[0].double() / temperature, -1).detach().numpy()
        at = 0
        for k, turn in enumerate(made.turns):
            at += len(turn.prompt_ids)
            state = output.hidden_states[-1][0, at - 1].detach()
            torch.testing.assert_close(scored.features[row, k].double(), state, rtol=1e-4, atol=1e-5)
            positions = range(at, at + len(turn.completion_ids))
            logprobs = [distribution[t - 1, ids[t]] for t in positions]
            assert scored.logprobs[row, k].item() == pytest.approx(sum(logprobs), abs=1e-4)
            np.testing.assert_allclose(
                scored.token_logprobs[row, positions.start : positions.stop].detach(), logprobs, atol=1e-4
            )
            entropy -= sum(
                float((np.exp(distribution[t - 1]) * distribution[t - 1]).sum()) for t in positions
            )
            at += len(turn.completion_ids)
    assert scored.entropy.item() == pytest.approx(entropy, rel=1e-4)
    assert scored.features.shape == (6, 3, HIDDEN) and not scored.features.requires_grad


class Logits(nn.Module):
    """A model whose logits are its parameters: gradients show which positions learn."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(*shape, VOCABULARY))

    def forward(
        self, input_ids: torch.Tensor, output_hidden_states: bool, use_cache: bool
    ) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits, hidden_states=(torch.zeros(*input_ids.shape, HIDDEN),))


@pytest.mark.parametrize("level", ["turn", "token"])
@pytest.mark.parametrize("which", ["policy", "entropy", "penalty"])
def test_no_token_of_the_environment_gets_a_gradient(which: str, level: str) -> None:
    torch.manual_seed(0)
    batch = batch_of(random_episodes(8, 3), max_attempts=3)
    settings = RLSettings(level=level)
    model = Logits(batch.ids.shape)
    scored, exists = scores(model, batch, settings), actions_of(batch, settings).exists
    if which == "policy":
        advantages = torch.where(exists, torch.randn(exists.shape), 0.0)
        loss, _ = policy_loss(scored.logprobs, scored.logprobs.detach(), advantages, exists, clip=0.1)
    elif which == "penalty":
        sampled, reference = scored.token_logprobs.detach(), torch.randn(batch.ids.shape)
        loss = reference_penalty(scored.token_logprobs, sampled, reference, batch.own)
    else:
        loss = scored.entropy
    loss.backward()
    assert model.logits.grad is not None
    learns = model.logits.grad.abs().sum(-1) > 0
    # The distribution at t - 1 gave the token at t.
    predicts_own = torch.zeros_like(learns)
    predicts_own[:, :-1] = batch.own[:, 1:]
    assert torch.equal(learns, predicts_own)
