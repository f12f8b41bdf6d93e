"""Advantages: GAE over the actions of an episode, turns or tokens, and their normalisation."""

from __future__ import annotations

import torch


def gae(
    rewards: torch.Tensor, values: torch.Tensor, exists: torch.Tensor, discount: torch.Tensor, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) with a discount of each action's own:

        A_a = δ_a + γ_a λ A_{a+1},   δ_a = r_a + γ_a V_{a+1} - V_a

    rewards, values: (B, A) float32; exists: (B, A) bool, a prefix of each row; discount: (B, A) float64,
    γ_a. An episode ends with its last action (no bootstrap). Returns advantages and returns (value
    targets), both (B, A) float32, 0 where there is no action.
    """
    gamma, decay = discount.to(values.dtype), (discount * lam).to(values.dtype)
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    running = torch.zeros_like(rewards[:, 0])
    for a in reversed(range(rewards.shape[1])):
        delta = rewards[:, a] + gamma[:, a] * next_value - values[:, a]
        running = torch.where(exists[:, a], delta + decay[:, a] * running, 0.0)
        advantages[:, a] = running
        next_value = torch.where(exists[:, a], values[:, a], 0.0)
    return advantages, torch.where(exists, advantages + values, 0.0)


def normalise(
    advantages: torch.Tensor, exists: torch.Tensor, mean: float, std: float, floor: float
) -> torch.Tensor:
    """(A - mean) / max(std, floor) where there is an action, else 0; mean and std are those of all workers."""
    return torch.where(exists, (advantages - mean) / max(std, floor), 0.0)
