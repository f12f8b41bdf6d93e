"""What one action of PPO is: a turn, as in the paper, or a token. Either way the rest of PPO is the same.

Both levels are laid out alike, an episode's actions one after the other, so that one code path
estimates advantages and computes losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlheals_ray.config import RLSettings
from rlheals_ray.rl.batch import Batch


@dataclass(frozen=True)
class Actions:
    """B episodes of at most A actions each; an episode's actions are a prefix of its row."""

    action_of: torch.Tensor
    """(B, T) int64: which action a model-written token belongs to; -1 for the environment's and padding."""
    state: torch.Tensor
    """(B, A) int64: position of the last token before the action, whose hidden state the critic values."""
    rewards: torch.Tensor
    """(B, A) float32: what followed the action at once."""
    discount: torch.Tensor
    """(B, A) float64: of what follows after the action, seen from it."""
    exists: torch.Tensor
    """(B, A) bool."""

    def rows(self, rows: torch.Tensor) -> Actions:
        """The episodes at `rows`."""
        return Actions(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def actions_of(batch: Batch, settings: RLSettings) -> Actions:
    """The batch's actions at `rl.level`; raises ValueError for a turn without tokens at token level."""
    if settings.level == "turn":
        return _turns(batch, settings.gamma)
    return _tokens(batch, settings.gamma, settings.token_gamma)


def _turns(batch: Batch, gamma: float) -> Actions:
    discount = torch.full_like(batch.rewards, gamma, dtype=torch.float64)
    return Actions(batch.turn_of, batch.prompt_end, batch.rewards, discount, batch.exists)


def _tokens(batch: Batch, gamma: float, token_gamma: float) -> Actions:
    """Each model-written token is an action; the environment's tokens lie between two of them.

    A turn's reward comes at its last token; the discount is `gamma` from there to the next turn and
    `token_gamma` from token to token within a turn.
    """
    own = batch.own
    counts = own.sum(1)
    action_of = torch.where(own, own.cumsum(1) - 1, -1)
    exists = torch.arange(int(counts.max()), device=own.device) < counts[:, None]
    # Both masks list episodes in order and, within one, its own tokens in order.
    positions = torch.arange(own.shape[1], device=own.device).expand_as(own)
    state = torch.zeros(exists.shape, dtype=torch.long, device=own.device)
    state[exists] = positions[own] - 1
    turn = torch.full(exists.shape, -1, device=own.device)
    turn[exists] = batch.turn_of[own]
    following = torch.cat([turn[:, 1:], torch.full_like(turn[:, :1], -1)], dim=1)
    ends_turn = exists & (turn != following)
    if not torch.equal(ends_turn.sum(1), batch.exists.sum(1)):
        raise ValueError("a turn has no tokens: at token level its reward would be nobody's")
    rewards = torch.where(ends_turn, batch.rewards.gather(1, turn.clamp(min=0)), 0.0)
    discount = torch.full_like(rewards, token_gamma, dtype=torch.float64).masked_fill(ends_turn, gamma)
    return Actions(action_of, state, rewards, discount, exists)


def per_action(values: torch.Tensor, action_of: torch.Tensor, actions: int) -> torch.Tensor:
    """Sum (B, T) token values over each action's own tokens: (B, A). Environment tokens count nowhere."""
    sums = values.new_zeros(values.shape[0], actions + 1)
    # Index 0 collects what belongs to no action and is dropped.
    sums = sums.scatter_add(1, action_of + 1, values)
    return sums[:, 1:]
