"""The critic: linear, detached from the policy, and fitted in closed form on its first rollout."""

import numpy as np
import pytest
import torch

from rlheals_ray.rl.critic import RIDGE, Critic


def material(n: int, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + hidden)
    features = rng.normal(size=(n, hidden)).astype(np.float32) + 3
    returns = (features @ rng.normal(size=hidden) + rng.normal(size=n) - 2).astype(np.float32)
    return features, returns


@pytest.mark.parametrize(("n", "hidden"), [(50, 8), (5, 16), (1, 4)])
def test_the_fit_is_ridge_regression_with_a_free_intercept(n: int, hidden: int) -> None:
    """Ridge is least squares over rows augmented by sqrt(lambda) I, in which the intercept has no part."""
    features, returns = material(n, hidden)
    critic = Critic(hidden)
    critic.fit(torch.tensor(features), torch.tensor(returns))
    rows = np.block([[features, np.ones((n, 1))], [np.sqrt(RIDGE) * np.eye(hidden), np.zeros((hidden, 1))]])
    expected, *_ = np.linalg.lstsq(rows, np.concatenate([returns, np.zeros(hidden)]), rcond=None)
    np.testing.assert_allclose(critic.linear.weight[0].detach(), expected[:-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(critic.linear.bias.detach(), expected[-1:], rtol=1e-4, atol=1e-4)


def test_before_any_fit_every_value_is_0() -> None:
    assert not Critic(4)(torch.randn(2, 3, 4)).any()


def test_values_have_the_shape_of_their_states() -> None:
    assert Critic(4)(torch.randn(2, 3, 4)).shape == (2, 3)


def test_the_value_never_moves_the_policy() -> None:
    features = torch.randn(5, 4, requires_grad=True)
    critic = Critic(4)
    torch.nn.init.ones_(critic.linear.weight)
    critic(features).sum().backward()
    assert features.grad is None
    assert critic.linear.weight.grad is not None


def test_returns_that_do_not_vary_are_the_intercept() -> None:
    critic = Critic(4)
    critic.fit(torch.randn(10, 4), torch.full((10,), -3.0))
    torch.testing.assert_close(critic(torch.randn(3, 4)), torch.full((3,), -3.0))


def test_a_fit_forgets_what_was_there() -> None:
    features, returns = map(torch.tensor, material(20, 4))
    fresh, used = Critic(4), Critic(4)
    torch.nn.init.normal_(used.linear.weight, std=10)
    fresh.fit(features, returns)
    used.fit(features, returns)
    assert torch.equal(fresh.linear.weight, used.linear.weight)
