"""Generalised advantage estimation over turns, against its definition in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlheals_ray.rl.advantage import gae, normalise

TURNS = 4


@st.composite
def episodes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rewards, values, exists), each (B, K); turns are a prefix of each row, at least one."""
    lengths = draw(st.lists(st.integers(1, TURNS), min_size=1, max_size=5))
    number = st.floats(-5, 5, width=32)
    shape = (len(lengths), TURNS)
    grid = st.lists(number, min_size=shape[0] * TURNS, max_size=shape[0] * TURNS)
    exists = np.arange(TURNS)[None] < np.array(lengths)[:, None]
    # Where there is no turn the critic still says something, about the first token.
    return np.where(exists, np.reshape(draw(grid), shape), 0.0), np.reshape(draw(grid), shape), exists


def by_definition(
    rewards: np.ndarray, values: np.ndarray, exists: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    """A_k = sum over l of (gamma lambda)^l delta_{k+l}, delta_k = r_k + gamma V_{k+1} - V_k, V = 0 after the end."""
    out = np.zeros(rewards.shape)
    for row in range(rewards.shape[0]):
        n = int(exists[row].sum())
        v = [float(x) for x in values[row, :n]] + [0.0]
        delta = [float(rewards[row, k]) + gamma * v[k + 1] - v[k] for k in range(n)]
        for k in range(n):
            out[row, k] = sum((gamma * lam) ** (j - k) * delta[j] for j in range(k, n))
    return out


def computed(
    rewards: np.ndarray, values: np.ndarray, exists: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    advantages, returns = gae(
        torch.tensor(rewards, dtype=torch.float32),
        torch.tensor(values, dtype=torch.float32),
        torch.tensor(exists),
        torch.full(rewards.shape, gamma, dtype=torch.float64),
        lam,
    )
    return advantages.numpy(), returns.numpy()


@given(episodes(), st.floats(0.1, 1), st.floats(0, 1))
def test_advantages_are_those_of_the_definition(
    made: tuple[np.ndarray, np.ndarray, np.ndarray], gamma: float, lam: float
) -> None:
    rewards, values, exists = made
    expected = by_definition(rewards, values, exists, gamma, lam)
    advantages, returns = computed(rewards, values, exists, gamma, lam)
    np.testing.assert_allclose(advantages, expected, atol=1e-4)
    np.testing.assert_allclose(returns, np.where(exists, expected + values, 0.0), atol=1e-4)


@given(episodes(), st.floats(0.1, 1))
def test_with_lambda_1_the_return_is_the_discounted_sum_of_rewards(
    made: tuple[np.ndarray, np.ndarray, np.ndarray], gamma: float
) -> None:
    rewards, values, exists = made
    _, returns = computed(rewards, values, exists, gamma, 1.0)
    for row in range(len(rewards)):
        for k in range(int(exists[row].sum())):
            expected = sum(gamma ** (j - k) * float(rewards[row, j]) for j in range(k, TURNS))
            assert returns[row, k] == pytest.approx(expected, abs=1e-3)


@given(episodes())
def test_with_lambda_0_the_advantage_is_the_temporal_difference(
    made: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    rewards, values, exists = made
    following = np.zeros_like(values)
    following[:, :-1] = np.where(exists[:, 1:], values[:, 1:], 0.0)
    expected = np.where(exists, rewards + 0.9 * following - values, 0.0)
    np.testing.assert_allclose(computed(rewards, values, exists, 0.9, 0.0)[0], expected, atol=1e-4)


@given(episodes())
def test_what_the_critic_says_of_turns_that_were_not_changes_nothing(
    made: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    rewards, values, exists = made
    other = np.where(exists, values, 1e6)
    for mine, theirs in zip(
        computed(rewards, values, exists, 0.9, 0.95), computed(rewards, other, exists, 0.9, 0.95), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
        assert not mine[~exists].any()


def test_a_perfect_critic_leaves_no_advantage() -> None:
    rewards, exists = np.array([[-3.0, -1.0, 5.0, 0.0]]), np.array([[True, True, True, False]])
    values = np.array([[-3 + 0.9 * (-1 + 0.9 * 5), -1 + 0.9 * 5, 5.0, 0.0]])
    np.testing.assert_allclose(computed(rewards, values, exists, 0.9, 0.5)[0], 0.0, atol=1e-6)


# --- normalisation


def test_advantages_are_centred_and_scaled_where_there_are_turns() -> None:
    advantages = torch.tensor([[2.0, -4.0], [7.0, 0.0]])
    exists = torch.tensor([[True, True], [True, False]])
    mean, std = advantages[exists].mean().item(), advantages[exists].std(unbiased=False).item()
    normal = normalise(advantages, exists, mean, std, floor=1.5)
    assert normal[exists].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert normal[exists].std(unbiased=False).item() == pytest.approx(1.0, rel=1e-6)
    assert normal[1, 1] == 0.0


def test_small_differences_are_not_blown_up() -> None:
    advantages = torch.tensor([[0.1, -0.1]])
    exists = torch.ones(1, 2, dtype=torch.bool)
    normal = normalise(advantages, exists, 0.0, 0.1, floor=1.5)
    torch.testing.assert_close(normal, advantages / 1.5)
