"""Turn-level advantages: GAE over the turns of an episode, and their normalisation."""

from __future__ import annotations

import torch


def gae(
    rewards: torch.Tensor, values: torch.Tensor, exists: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over turns.

    rewards, values: (B, K) float32; exists: (B, K) bool, a prefix of each row. An episode ends with its
    last turn (no bootstrap). Returns advantages and returns (value targets), both (B, K), 0 where there
    is no turn.
    """
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    running = torch.zeros_like(rewards[:, 0])
    for k in reversed(range(rewards.shape[1])):
        delta = rewards[:, k] + gamma * next_value - values[:, k]
        running = torch.where(exists[:, k], delta + gamma * lam * running, 0.0)
        advantages[:, k] = running
        next_value = torch.where(exists[:, k], values[:, k], 0.0)
    return advantages, torch.where(exists, advantages + values, 0.0)


def normalise(
    advantages: torch.Tensor, exists: torch.Tensor, mean: float, std: float, floor: float
) -> torch.Tensor:
    """(A - mean) / max(std, floor) where there is a turn, else 0; mean and std are those of all workers."""
    return torch.where(exists, (advantages - mean) / max(std, floor), 0.0)
