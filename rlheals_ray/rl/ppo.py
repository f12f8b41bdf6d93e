"""PPO over turns: one update of policy and critic from one batch of episodes, on one or many workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
import torch
import torch.distributed as dist
from torch import nn

from rlheals_ray.config import RLSettings
from rlheals_ray.rl.advantage import gae, normalise
from rlheals_ray.rl.batch import Batch, per_turn
from rlheals_ray.rl.critic import Critic
from rlheals_ray.rl.losses import explained_variance, policy_loss, value_loss
from rlheals_ray.rl.policy import Evaluation, evaluate
from rlheals_ray.training import Hopeless


class Diverged(Hopeless):
    """A loss or gradient became NaN or infinite."""


@dataclass
class PPO:
    """The learner's state and its update. With several workers each holds a slice of the episodes."""

    model: nn.Module
    critic: Critic
    policy_optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer
    settings: RLSettings

    def update(self, batch: Batch, *, first: bool) -> dict[str, Any]:
        """Learn from this worker's episodes; returns the metrics of tables/rl, over all workers.

        `first` fits the critic in closed form before the advantages are computed.
        """
        settings = self.settings
        with torch.no_grad():
            before = evaluate(self.model, batch, settings.temperature)
            if first:
                self._fit_critic(batch, before)
            old_values = self.critic(before.features)
            advantages, returns = gae(
                batch.rewards, old_values, batch.exists, settings.gamma, settings.gae_lambda
            )
            everyone = _gather(advantages[batch.exists])
            turns = everyone.numel()
            normal = normalise(
                advantages,
                batch.exists,
                everyone.mean().item(),
                everyone.std(unbiased=False).item(),
                settings.advantage_floor,
            )
            generator_logprobs = torch.where(batch.turn_of >= 0, batch.logprobs, 0.0)
            old_logprobs = per_turn(generator_logprobs, batch.turn_of, batch.exists.shape[1])
        tokens = _sum(float((batch.turn_of >= 0).sum()))
        totals = {"clipped": 0.0, "norm": 0.0, "entropy": 0.0}
        value_clip = settings.clip * _scale(returns, batch)
        for _ in range(settings.epochs):
            scored = evaluate(self.model, batch, settings.temperature)
            loss, clipped = policy_loss(
                scored.turn_logprobs, old_logprobs, normal, batch.exists, settings.clip
            )
            loss = loss / turns - settings.entropy_coefficient * scored.entropy / tokens
            values = self.critic(before.features)
            critic_loss = value_loss(values, old_values, returns, batch.exists, value_clip)
            totals["norm"] += self._step(loss, settings.value_coefficient * critic_loss / turns)
            totals["clipped"] += _sum(float(clipped))
            totals["entropy"] += _sum(float(scored.entropy.detach()))
        with torch.no_grad():
            after = evaluate(self.model, batch, settings.temperature)
        return {
            "entropy": totals["entropy"] / tokens / settings.epochs,
            "approx_kl": _sum(_approx_kl(after, batch)) / tokens,
            "clip_fraction": totals["clipped"] / turns / settings.epochs,
            "grad_norm": totals["norm"] / settings.epochs,
            "explained_variance": explained_variance(
                _gather(old_values[batch.exists]), _gather(returns[batch.exists])
            ),
            **_advantage_shape(everyone),
            **_mismatch(before, batch, tokens),
        }

    def _fit_critic(self, batch: Batch, before: Evaluation) -> None:
        _, returns = gae(
            batch.rewards, torch.zeros_like(batch.rewards), batch.exists, self.settings.gamma, 1.0
        )
        features = _gather(before.features[batch.exists])
        self.critic.fit(features, _gather(returns[batch.exists]))

    def _step(self, policy: torch.Tensor, value: torch.Tensor) -> float:
        """Backward, sum gradients over workers (losses are already shares of the whole), clip, step."""
        self.policy_optimizer.zero_grad(set_to_none=True)
        self.value_optimizer.zero_grad(set_to_none=True)
        (policy + value).backward()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        _sum_gradients([*parameters, *self.critic.parameters()])
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise Diverged(f"the policy's gradient norm is {norm.item()}")
        self.policy_optimizer.step()
        self.value_optimizer.step()
        return norm.item()


def _scale(returns: torch.Tensor, batch: Batch) -> float:
    """The value clip is relative to the returns' spread: rewards here are of the order of 5, not 1."""
    everyone = _gather(returns[batch.exists])
    return max(1.0, everyone.std(unbiased=False).item())


def _approx_kl(scored: Evaluation, batch: Batch) -> float:
    """Summed over the model's tokens: the k3 estimate r - 1 - log r of KL(generator || updated policy)."""
    own = batch.turn_of >= 0
    log_ratio = (scored.token_logprobs.detach() - batch.logprobs)[own]
    return float((log_ratio.exp() - 1 - log_ratio).sum())


def _mismatch(before: Evaluation, batch: Batch, tokens: float) -> dict[str, float]:
    """How far the generator's log-probabilities stand from the learner's for the same weights."""
    own = batch.turn_of >= 0
    difference = (before.token_logprobs - batch.logprobs)[own].abs()
    largest = _gather(difference.max()[None]) if difference.numel() else torch.zeros(1)
    return {
        "logprob_mismatch_mean": _sum(float(difference.sum())) / tokens,
        "logprob_mismatch_max": float(largest.max()),
    }


def _advantage_shape(advantages: torch.Tensor) -> dict[str, float]:
    """Quantiles and skew of the raw advantages: the paper ties recoverability to their flatness."""
    values = advantages.double().numpy()
    quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    names = ("q05", "q25", "q50", "q75", "q95")
    skew = float(scipy.stats.skew(values)) if values.std() > 1e-9 else 0.0
    return {f"advantage_{n}": float(q) for n, q in zip(names, quantiles, strict=True)} | {
        "advantage_skew": skew
    }


# --- over all workers


def _distributed() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _sum(value: float) -> float:
    if not _distributed():
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.item()


def _gather(values: torch.Tensor) -> torch.Tensor:
    """The rows of every worker, in rank order, on every worker."""
    if not _distributed():
        return values
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return torch.cat(parts)


def _sum_gradients(parameters: list[nn.Parameter]) -> None:
    if not _distributed():
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
