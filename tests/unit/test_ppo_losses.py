"""PPO's clipped losses against a float64 reference, and the laws that they must obey."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rlheals_ray.rl.losses import policy_loss, value_loss
from rlheals_ray.rl.metrics import explained_variance

SHAPE = (3, 4)
numbers = arrays.arrays(np.float64, SHAPE, elements=st.floats(-3, 3, width=32))
masks = arrays.arrays(np.bool_, SHAPE)


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


@given(numbers, numbers, numbers, masks)
def test_the_policy_loss_is_the_clipped_surrogate(
    new: np.ndarray, old: np.ndarray, advantages: np.ndarray, exists: np.ndarray
) -> None:
    clip, expected, active = 0.2, 0.0, 0
    for at in zip(*np.nonzero(exists), strict=True):
        ratio, advantage = float(np.exp(new[at] - old[at])), float(advantages[at])
        # Eq. 7 written out: gains stop at the edge of the clip, losses never do.
        if advantage >= 0:
            expected -= min(ratio, 1 + clip) * advantage
            active += ratio > 1 + clip and advantage > 0
        else:
            expected -= max(ratio, 1 - clip) * advantage
            active += ratio < 1 - clip
    loss, clipped = policy_loss(tensor(new), tensor(old), tensor(advantages), torch.tensor(exists), clip)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-3)
    # At the very edge float32 and float64 may disagree about a single turn, as they may about tiny advantages.
    edge = np.abs(np.abs(np.exp(new - old) - 1) - clip) < 1e-4
    tiny = np.abs(advantages) < 1e-30
    assert abs(int(clipped) - active) <= int(((edge | tiny) & exists).sum())


def test_at_ratio_1_the_gradient_is_the_policy_gradient() -> None:
    torch.manual_seed(0)
    logprobs = torch.randn(SHAPE, requires_grad=True)
    advantages, exists = torch.randn(SHAPE), torch.rand(SHAPE) < 0.7
    loss, clipped = policy_loss(logprobs, logprobs.detach(), advantages, exists, clip=0.1)
    loss.backward()
    reinforce = logprobs.detach().clone().requires_grad_()
    (-(reinforce * advantages)[exists].sum()).backward()
    torch.testing.assert_close(logprobs.grad, reinforce.grad)
    assert int(clipped) == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [(1.3, 2.0, True), (1.3, -2.0, False), (0.7, -2.0, True), (0.7, 2.0, False), (1.1, 2.0, False),
     (1.3, 0.0, False)],
)  # fmt: skip
def test_a_turn_beyond_the_clip_teaches_nothing_more(ratio: float, advantage: float, clipped: bool) -> None:
    logprob = torch.tensor([[ratio]]).log().requires_grad_()
    loss, active = policy_loss(
        logprob, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1, dtype=torch.bool), 0.2
    )
    loss.backward()
    assert bool(active) is clipped
    expected = 0.0 if clipped else -ratio * advantage
    assert logprob.grad is not None and logprob.grad.item() == pytest.approx(expected, abs=1e-6)


def test_turns_that_were_not_neither_count_nor_overflow() -> None:
    new = torch.tensor([[0.0, 1e4]], requires_grad=True)
    exists = torch.tensor([[True, False]])
    loss, active = policy_loss(new, torch.zeros(1, 2), torch.tensor([[1.0, 9.0]]), exists, 0.1)
    loss.backward()
    assert loss.item() == -1.0 and int(active) == 0
    assert new.grad is not None and new.grad.tolist() == [[-1.0, 0.0]]


@given(numbers, numbers, numbers, masks)
def test_the_value_loss_is_the_larger_of_two_squared_errors(
    values: np.ndarray, old: np.ndarray, returns: np.ndarray, exists: np.ndarray
) -> None:
    clip, expected = 0.5, 0.0
    for at in zip(*np.nonzero(exists), strict=True):
        value, before, target = values[at], old[at], returns[at]
        moved = min(max(value, before - clip), before + clip)
        expected += 0.5 * max((value - target) ** 2, (moved - target) ** 2)
    loss = value_loss(tensor(values), tensor(old), tensor(returns), torch.tensor(exists), clip)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_unmoved_values_learn_as_by_least_squares() -> None:
    values = torch.randn(SHAPE, requires_grad=True)
    returns, exists = torch.randn(SHAPE), torch.ones(SHAPE, dtype=torch.bool)
    value_loss(values, values.detach(), returns, exists, 0.1).backward()
    torch.testing.assert_close(values.grad, (values - returns).detach())


def test_explained_variance_is_1_for_the_truth_and_0_for_a_constant() -> None:
    returns = torch.tensor([5.0, -3.0, -1.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 9.0), returns) == 0.0


def test_explained_variance_of_returns_that_do_not_vary_is_0() -> None:
    assert explained_variance(torch.randn(4), torch.full((4,), 5.0)) == 0.0


def test_explained_variance_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    returns = rng.normal(size=50)
    values = 0.5 * returns + rng.normal(size=50)
    expected = 1 - np.var(returns - values) / np.var(returns)
    assert explained_variance(tensor(values), tensor(returns)) == pytest.approx(expected, rel=1e-5)
