"""PPO: one update of policy and critic from one batch of episodes, on one or many workers.

An action is a turn or a token (actions.py); nothing here depends on which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from rlheals_ray.config import RLSettings
from rlheals_ray.rl.actions import Actions, actions_of, per_action
from rlheals_ray.rl.advantage import gae, normalise
from rlheals_ray.rl.batch import Batch
from rlheals_ray.rl.collectives import gathered, sum_gradients, total
from rlheals_ray.rl.critic import Critic
from rlheals_ray.rl.losses import policy_loss, reference_penalty, value_loss
from rlheals_ray.rl.metrics import (
    Diverged,
    advantage_shape,
    explained_variance,
    mean_kl,
    mismatch,
    require_finite,
)
from rlheals_ray.rl.policy import Evaluation, evaluate
from rlheals_ray.rl.schedule import learning_rate
from rlheals_ray.rl.sharded_policy import ShardedPolicy

__all__ = ["PPO", "Diverged"]


@dataclass(frozen=True)
class Experience:
    """What an update learns from: this worker's episodes, and what is fixed about them."""

    batch: Batch
    actions: Actions
    old_logprobs: torch.Tensor
    """(B, A): of the actions, by the generator's own account."""
    advantages: torch.Tensor
    """(B, A): normalised."""
    features: torch.Tensor
    """(B, A, hidden): what the critic sees."""
    old_values: torch.Tensor
    """(B, A)."""
    returns: torch.Tensor
    """(B, A): what the critic learns."""
    reference: torch.Tensor | None
    """(B, T): log-probabilities of the tokens under the frozen reference, where there is one."""
    scored: Evaluation | None = None
    """The forward pass that found all this, gradients included, where the first step can learn from it."""


@dataclass
class PPO:
    """The learner's state and its update. With several workers each holds a slice of the episodes."""

    policy: ShardedPolicy
    critic: Critic
    value_optimizer: torch.optim.Optimizer
    settings: RLSettings
    seed: tuple[int, ...] = (0,)
    """Of the branch; orders the episodes into minibatches."""
    reference: nn.Module | None = None
    """The frozen start of the branch, where rl.kl_coefficient > 0."""

    def update(self, batch: Batch, update: int) -> dict[str, Any]:
        """Learn from this worker's episodes; returns the metrics of tables/rl, over all workers.

        `update` counts from 1. The first one fits the critic in closed form before advantages are
        computed. Collective. Raises Diverged, on every worker, for a NaN or an infinity.
        """
        settings = self.settings
        batch = batch.to(self.policy.device)
        actions = actions_of(batch, settings)
        learns = update > settings.critic_warmup
        scored = self._scored_with_gradients(batch, actions) if learns and self._is_one_step else None
        before = scored.detached() if scored else self._score(self.policy.module, batch, actions)
        require_finite(
            update,
            **{
                "the policy's log-probability": total(float(before.token_logprobs.sum())),
                "the critic's input": total(float(before.features.sum())),
            },
        )
        experience, advantages = self._experience(batch, actions, before, first=update == 1)
        experience = replace(experience, scored=scored)
        everyone = gathered(advantages[actions.exists])
        require_finite(update, **{"an advantage": float(everyone.sum())})
        tokens = total(float(batch.own.sum()))
        metrics: dict[str, Any] = {"entropy": total(float(before.entropy)) / tokens, "learning_rate": 0.0}
        if experience.reference is not None:
            metrics["reference_kl"] = mean_kl(before.token_logprobs, experience.reference, batch.own, tokens)
        if learns:
            self.policy.learning_rate = learning_rate(settings, update)
            metrics["learning_rate"] = self.policy.learning_rate
            metrics |= self._learn_policy(experience, update)
        metrics |= self._learn_values(experience, update)
        after = self._score(self.policy.module, batch, actions)
        metrics["approx_kl"] = mean_kl(batch.logprobs, after.token_logprobs, batch.own, tokens)
        metrics["explained_variance"] = explained_variance(
            gathered(experience.old_values[actions.exists]), gathered(experience.returns[actions.exists])
        )
        metrics |= advantage_shape(everyone)
        metrics |= mismatch(batch.logprobs, before.token_logprobs, batch.own, tokens)
        require_finite(update, **metrics)
        return metrics

    @property
    def _is_one_step(self) -> bool:
        """Whether an update is a single step on all episodes at once: then one forward pass serves it all."""
        settings = self.settings
        return settings.epochs == settings.minibatches == 1 and settings.micro_batch is None

    def _scored_with_gradients(self, batch: Batch, actions: Actions) -> Evaluation:
        with self.policy.autocast():
            return evaluate(self.policy.module, batch, actions, self.settings.temperature)

    @torch.no_grad()
    def _experience(
        self, batch: Batch, actions: Actions, before: Evaluation, *, first: bool
    ) -> tuple[Experience, torch.Tensor]:
        """What to learn from, and the advantages as they were before their normalisation."""
        settings, exists = self.settings, actions.exists
        if first:
            zeros = torch.zeros_like(actions.rewards)
            _, returns = gae(actions.rewards, zeros, exists, actions.discount, 1.0)
            self.critic.fit(before.features[exists], returns[exists])
        old_values = self.critic(before.features)
        advantages, returns = gae(actions.rewards, old_values, exists, actions.discount, settings.gae_lambda)
        everyone = gathered(advantages[exists])
        normal = normalise(
            advantages,
            exists,
            everyone.mean().item(),
            everyone.std(unbiased=False).item(),
            settings.advantage_floor,
        )
        reference = None
        if self.reference is not None:
            reference = self._score(self.reference, batch, actions).token_logprobs
        return Experience(
            batch=batch,
            actions=actions,
            old_logprobs=per_action(batch.logprobs, actions.action_of, exists.shape[1]),
            advantages=normal,
            features=before.features,
            old_values=old_values,
            returns=returns,
            reference=reference,
        ), advantages

    def _learn_policy(self, experience: Experience, update: int) -> dict[str, float]:
        settings = self.settings
        surrogates, norms, clipped, counted = 0.0, [], 0.0, 0.0
        for epoch in range(settings.epochs):
            for rows in self._minibatches(len(experience.batch.ids), update, epoch):
                actions = total(float(experience.actions.exists[rows].sum()))
                tokens = total(float(experience.batch.own[rows].sum()))
                parts = rows.split(settings.micro_batch or len(rows))
                for part in parts:
                    loss, surrogate, stopped = self._policy_loss(experience, part, actions, tokens)
                    self.policy.backward(loss, last=part is parts[-1])
                    surrogates += float(surrogate)
                    clipped += float(stopped)
                counted += actions
                norms.append(self.policy.step())
                require_finite(update, **{"the norm of the policy's gradient": norms[-1]})
        return {
            "policy_loss": total(surrogates) / counted,
            "clip_fraction": total(clipped) / counted,
            "grad_norm": sum(norms) / len(norms),
        }

    def _policy_loss(
        self, experience: Experience, rows: torch.Tensor, actions: float, tokens: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """These episodes' share of a minibatch's loss; their summed surrogate; how often it was clipped.

        actions, tokens: the minibatch's, over all workers.
        """
        settings = self.settings
        batch, taken = experience.batch.rows(rows), experience.actions.rows(rows)
        scored = experience.scored or self._scored_with_gradients(batch, taken)
        surrogate, clipped = policy_loss(
            scored.logprobs,
            experience.old_logprobs[rows],
            experience.advantages[rows],
            taken.exists,
            settings.clip,
        )
        loss = surrogate / actions
        if settings.entropy_coefficient > 0:
            loss = loss - settings.entropy_coefficient * scored.entropy / tokens
        if experience.reference is not None:
            penalty = reference_penalty(
                scored.token_logprobs, batch.logprobs, experience.reference[rows], batch.own
            )
            loss = loss + settings.kl_coefficient * penalty / tokens
        return loss, surrogate.detach(), clipped

    def _learn_values(self, experience: Experience, update: int) -> dict[str, float]:
        """The critic's own passes, on features that the policy's steps do not change."""
        settings, losses, counted = self.settings, 0.0, 0.0
        # Relative to the returns' spread: rewards here are of the order of 5, not 1.
        spread = gathered(experience.returns[experience.actions.exists]).std(unbiased=False).item()
        clip = settings.clip * max(1.0, spread)
        for epoch in range(settings.epochs * settings.value_epochs):
            for rows in self._minibatches(len(experience.batch.ids), update, epoch):
                exists = experience.actions.exists[rows]
                actions = total(float(exists.sum()))
                loss = value_loss(
                    self.critic(experience.features[rows]),
                    experience.old_values[rows],
                    experience.returns[rows],
                    exists,
                    clip,
                )
                self.value_optimizer.zero_grad(set_to_none=True)
                (settings.value_coefficient * loss / actions).backward()
                sum_gradients(self.critic.parameters())
                summed = total(float(loss.detach()))
                require_finite(update, **{"the critic's loss": summed})
                self.value_optimizer.step()
                losses += summed
                counted += actions
        return {"value_loss": losses / counted}

    def _minibatches(self, episodes: int, update: int, epoch: int) -> tuple[torch.Tensor, ...]:
        """Rows of each optimiser step of a pass: equal shares of this worker's episodes, in a seeded order."""
        if self.settings.minibatches == 1:
            return (torch.arange(episodes),)
        order = np.random.default_rng((*self.seed, update, epoch)).permutation(episodes)
        return torch.from_numpy(order).chunk(self.settings.minibatches)

    @torch.no_grad()
    def _score(self, module: nn.Module, batch: Batch, actions: Actions) -> Evaluation:
        """`evaluate` in micro-batches, without gradients."""
        episodes = len(batch.ids)
        parts = []
        for rows in torch.arange(episodes).split(self.settings.micro_batch or episodes):
            with self.policy.autocast():
                parts.append(
                    evaluate(module, batch.rows(rows), actions.rows(rows), self.settings.temperature)
                )
        return Evaluation(
            token_logprobs=torch.cat([part.token_logprobs for part in parts]),
            logprobs=torch.cat([part.logprobs for part in parts]),
            entropy=torch.stack([part.entropy for part in parts]).sum(),
            features=torch.cat([part.features for part in parts]),
        )
