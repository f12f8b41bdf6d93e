"""PPO's clipped losses (Schulman et al. 2017, eq. 7), per turn: a turn is one action, as in the paper."""

from __future__ import annotations

import torch


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    exists: torch.Tensor,
    clip: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed clipped surrogate over turns, and the number of turns where the clip was active.

    All (B, K): log-probabilities of whole turns (sums over their tokens), advantages, existence.
    """
    ratio = torch.exp(torch.where(exists, logprobs - old_logprobs, 0.0))
    clipped = ratio.clamp(1 - clip, 1 + clip)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    active = (clipped * advantages < ratio * advantages) & exists
    return -torch.where(exists, surrogate, 0.0).sum(), active.sum()


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, exists: torch.Tensor, clip: float
) -> torch.Tensor:
    """Summed clipped squared error over turns: max of the error and of that of the value moved by at most `clip`."""
    moved = old_values + (values - old_values).clamp(-clip, clip)
    error = torch.maximum((values - returns) ** 2, (moved - returns) ** 2)
    return 0.5 * torch.where(exists, error, 0.0).sum()


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over turns (1-D); 0 where the returns do not vary."""
    variance = returns.var(unbiased=False)
    if variance < 1e-12:
        return 0.0
    return float(1 - (returns - values).var(unbiased=False) / variance)
