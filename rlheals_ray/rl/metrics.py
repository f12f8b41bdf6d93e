"""What is told of an update in tables/rl, over all workers; and the stop when a number is none any more."""

from __future__ import annotations

import math

import numpy as np
import scipy.stats
import torch

from rlheals_ray.rl.collectives import gathered, total
from rlheals_ray.rl.losses import k3
from rlheals_ray.training import Hopeless


class Diverged(Hopeless):
    """A quantity of an update became NaN or infinite."""


def require_finite(update: int, **quantities: float) -> None:
    """Raise Diverged, naming the update and the first quantity that is NaN or infinite.

    The quantities are those of all workers, so that every rank raises alike.
    """
    for name, value in quantities.items():
        if not math.isfinite(value):
            raise Diverged(f"update {update}: {name} is {value}")


def mean_kl(sampler: torch.Tensor, other: torch.Tensor, own: torch.Tensor, tokens: float) -> float:
    """KL(sampler || other) per token that the sampler wrote, by the estimate k3; tokens: how many, everywhere.

    sampler, other: (B, T) log-probabilities of the tokens; own: (B, T) bool. Nats.
    """
    return total(float(k3((other - sampler)[own].double()).sum())) / tokens


def mismatch(
    generator: torch.Tensor, learner: torch.Tensor, own: torch.Tensor, tokens: float
) -> dict[str, float]:
    """How far the generator's log-probabilities stand from the learner's for the same weights, per token."""
    difference = (learner - generator)[own].double().abs()
    largest = gathered(difference.max()[None] if difference.numel() else difference)
    return {
        "logprob_mismatch_mean": total(float(difference.sum())) / tokens,
        "logprob_mismatch_max": float(largest.max()),
        "logprob_mismatch_kl": mean_kl(generator, learner, own, tokens),
    }


def advantage_shape(advantages: torch.Tensor) -> dict[str, float]:
    """Quantiles and skew of the raw advantages (1-D): the paper ties recoverability to their flatness."""
    values = advantages.double().numpy()
    quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    names = ("q05", "q25", "q50", "q75", "q95")
    skew = float(scipy.stats.skew(values)) if values.std() > 1e-9 else 0.0
    return {f"advantage_{n}": float(q) for n, q in zip(names, quantiles, strict=True)} | {
        "advantage_skew": skew
    }


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over actions (1-D); 0 where the returns do not vary."""
    variance = returns.var(unbiased=False)
    if variance < 1e-12:
        return 0.0
    return float(1 - (returns - values).var(unbiased=False) / variance)
