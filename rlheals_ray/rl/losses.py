"""PPO's losses: clipped policy and value losses over actions, and the penalty on leaving the reference."""

from __future__ import annotations

import torch


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    exists: torch.Tensor,
    clip: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed clipped surrogate over actions (Schulman et al. 2017, eq. 7), and how many the clip stopped.

    All (B, A): log-probabilities of whole actions (sums over their tokens), advantages, existence.
    """
    ratio = torch.exp(torch.where(exists, logprobs - old_logprobs, 0.0))
    clipped = ratio.clamp(1 - clip, 1 + clip)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    active = (clipped * advantages < ratio * advantages) & exists
    return -torch.where(exists, surrogate, 0.0).sum(), active.sum()


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, exists: torch.Tensor, clip: float
) -> torch.Tensor:
    """Summed clipped squared error over actions, all (B, A): the larger of the error and of that of the
    value moved by at most `clip`."""
    moved = old_values + (values - old_values).clamp(-clip, clip)
    error = torch.maximum((values - returns) ** 2, (moved - returns) ** 2)
    return 0.5 * torch.where(exists, error, 0.0).sum()


def reference_penalty(
    logprobs: torch.Tensor, sampled: torch.Tensor, reference: torch.Tensor, own: torch.Tensor
) -> torch.Tensor:
    """Summed over the model's tokens: an unbiased estimate, gradient included, of KL(policy || reference).

    logprobs, sampled, reference: (B, T), of the policy, of the generator that drew the tokens and of the
    reference; own: (B, T) bool, the tokens that the model wrote.

    With r = π_ref / π, k3 = r - 1 - log r ≥ 0 is an unbiased estimate of KL(π || π_ref) from samples of π
    (Schulman 2020, "Approximating KL Divergence"). That note is about the value: the gradient of k3 alone
    has the mean of the gradient of the *other* KL, since (1 - r) ∇log π averages to that of KL(π_ref || π)
    (Tang & Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL"). Weighted by
    ρ = π / π_generator it is right on both counts, also once π has moved away from the generator:
    ∇(ρ k3) = ρ (-log r) ∇log π, whose mean is ∇KL(π || π_ref) (DeepSeek-V3.2, "Unbiased KL Estimate").
    """
    ratio = torch.exp(torch.where(own, logprobs - sampled, 0.0))
    return (ratio * k3(torch.where(own, reference - logprobs, 0.0))).sum()


def k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """r - 1 - log r of log r: an unbiased, never negative estimate of KL(p || q) from a sample of p, r = q / p
    (Schulman 2020)."""
    return torch.expm1(log_ratio) - log_ratio
