"""What an action is: the layout of turns and of tokens against a loop, and GAE over tokens in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.config import RLSettings
from rlheals_ray.rl.actions import actions_of, per_action
from rlheals_ray.rl.advantage import gae
from rlheals_ray.rl.batch import batch_of
from rlheals_ray.rollout.episode import Episode
from tests.learning import episode, random_episodes

TOKENS = RLSettings(level="token", gamma=0.9, token_gamma=0.8)


def test_at_turn_level_an_action_is_a_turn() -> None:
    batch = batch_of(random_episodes(5, 3), max_attempts=3)
    actions = actions_of(batch, RLSettings(gamma=0.7))
    assert torch.equal(actions.action_of, batch.turn_of) and torch.equal(actions.state, batch.prompt_end)
    assert torch.equal(actions.rewards, batch.rewards) and torch.equal(actions.exists, batch.exists)
    assert set(actions.discount.flatten().tolist()) == {0.7}


def test_at_token_level_every_token_of_the_model_is_an_action() -> None:
    made = [
        episode(([1, 2, 3], [4, 5], -3.0), ([6, 7], [8, 9, 10], 5.0)),
        episode(([1, 2], [11], 5.0)),
    ]
    actions = actions_of(batch_of(made, max_attempts=3), TOKENS)
    assert actions.action_of.tolist() == [
        [-1, -1, -1, 0, 1, -1, -1, 2, 3, 4],
        [-1, -1, 0, -1, -1, -1, -1, -1, -1, -1],
    ]
    # The state of a token is the token before it, be that the environment's or the model's.
    assert actions.state.tolist() == [[2, 3, 6, 7, 8], [1, 0, 0, 0, 0]]
    assert actions.rewards.tolist() == [[0, -3, 0, 0, 5], [5, 0, 0, 0, 0]]
    assert actions.discount[0].tolist() == [0.8, 0.9, 0.8, 0.8, 0.9] and actions.discount[1, 0] == 0.9
    assert actions.exists.tolist() == [[True] * 5, [True, False, False, False, False]]


def test_a_turn_without_tokens_has_nobody_to_reward() -> None:
    batch = batch_of([episode(([1, 2], [], 5.0), ([3], [4], 1.0))], max_attempts=2)
    with pytest.raises(ValueError, match="no tokens"):
        actions_of(batch, TOKENS)


@pytest.mark.parametrize("level", ["turn", "token"])
def test_sums_over_actions_are_those_of_a_loop(level: str) -> None:
    batch = batch_of(random_episodes(20, 3), max_attempts=3)
    actions = actions_of(batch, at_level(level))
    values = torch.randn(batch.ids.shape, dtype=torch.float64)
    expected = torch.zeros(actions.exists.shape, dtype=torch.float64)
    for row, column in batch.own.nonzero().tolist():
        expected[row, actions.action_of[row, column]] += values[row, column]
    torch.testing.assert_close(per_action(values, actions.action_of, actions.exists.shape[1]), expected)


def by_definition(
    made: Episode, values: list[float], gamma: float, token_gamma: float, lam: float
) -> list[float]:
    """GAE of one episode in float64: A_t = δ_t + γ_t λ A_{t+1} over its own tokens alone, as a recursion forward."""
    rewards: list[float] = []
    discounts: list[float] = []
    for turn in made.turns:
        n = len(turn.completion_ids)
        rewards += [0.0] * (n - 1) + [turn.verdict.reward]
        discounts += [token_gamma] * (n - 1) + [gamma]
    following = [*values[1:], 0.0]
    delta = [r + g * f - v for r, g, f, v in zip(rewards, discounts, following, values, strict=True)]

    def advantage(t: int) -> float:
        if t == len(delta):
            return 0.0
        return delta[t] + discounts[t] * lam * advantage(t + 1)

    return [advantage(t) for t in range(len(delta))]


unit = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 4), st.integers(0, 10_000), st.floats(0.1, 1), st.floats(0.1, 1), unit
)
def test_advantages_of_tokens_are_those_of_the_definition(
    count: int, max_attempts: int, seed: int, gamma: float, token_gamma: float, lam: float
) -> None:
    episodes = random_episodes(count, max_attempts, seed)
    how = RLSettings(level="token", gamma=gamma, token_gamma=token_gamma)
    actions = actions_of(batch_of(episodes, max_attempts), how)
    values = torch.randn(actions.exists.shape, generator=torch.Generator().manual_seed(seed)) * 3
    advantages, returns = gae(actions.rewards, values, actions.exists, actions.discount, lam)
    for row, made in enumerate(episodes):
        expected = by_definition(made, values[row, : made.tokens].double().tolist(), gamma, token_gamma, lam)
        np.testing.assert_allclose(advantages[row, : made.tokens], expected, atol=1e-4)
        np.testing.assert_allclose(
            returns[row, : made.tokens], values[row, : made.tokens].double().numpy() + expected, atol=1e-4
        )
    assert not advantages[~actions.exists].any() and not returns[~actions.exists].any()


def test_without_discounts_the_return_of_every_token_is_the_reward_still_to_come() -> None:
    made = episode(([1, 2], [3, 4], -3.0), ([5], [6, 7, 8], 5.0))
    how = RLSettings(level="token", gamma=1.0, token_gamma=1.0)
    actions = actions_of(batch_of([made], 2), how)
    _, returns = gae(actions.rewards, torch.randn(1, 5), actions.exists, actions.discount, 1.0)
    torch.testing.assert_close(returns, torch.tensor([[2.0, 2, 5, 5, 5]]))


def test_turns_of_one_token_are_the_same_at_both_levels() -> None:
    made = [
        episode(*(([1, 2], [3], reward) for reward in rewards))
        for rewards in ([-3.0, 5.0], [-1.0, -2.0, 5.0])
    ]
    batch = batch_of(made, max_attempts=3)
    turns, tokens = (actions_of(batch, at_level(level)) for level in ("turn", "token"))
    for name in ("action_of", "state", "rewards", "exists"):
        assert torch.equal(getattr(turns, name), getattr(tokens, name)), name
    values = torch.randn(2, 3)
    for one, other in zip(
        gae(turns.rewards, values, turns.exists, turns.discount, 0.95),
        gae(tokens.rewards, values, tokens.exists, tokens.discount, 0.95),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def at_level(level: str) -> RLSettings:
    return TOKENS.model_copy(update={"level": level})


def test_log_probabilities_of_the_environment_s_tokens_count_nowhere() -> None:
    batch = batch_of(random_episodes(6, 3), max_attempts=3)
    noisy = replace(batch, logprobs=torch.where(batch.own, batch.logprobs, torch.randn(batch.ids.shape)))
    for level in ("turn", "token"):
        actions = actions_of(batch, at_level(level))
        count = actions.exists.shape[1]
        clean = per_action(batch.logprobs, actions.action_of, count)
        assert torch.equal(per_action(noisy.logprobs, actions.action_of, count), clean)
