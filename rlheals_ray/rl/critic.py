"""The critic: a linear value of the policy's last hidden state at the end of each turn's prompt.

The features are detached: the value never moves the policy. On the first rollout of a branch it is
fitted in closed form (ridge regression), because RL that starts with an ignorant critic first
destroys the policy that it was given.
"""

from __future__ import annotations

import torch
from torch import nn

RIDGE = 1.0
"""Penalty on the weights, in units of one turn's squared feature."""


class Critic(nn.Module):
    """Value of a state: (…, hidden) features to (…) returns."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features.detach()).squeeze(-1)

    @torch.no_grad()
    def fit(self, features: torch.Tensor, returns: torch.Tensor) -> None:
        """Ridge regression of returns (n,) on features (n, hidden), with a free intercept."""
        x, y = features.double(), returns.double()
        centre, mean = x.mean(0), y.mean()
        x = x - centre
        gram = x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
        weight = torch.linalg.solve(gram, x.T @ (y - mean))
        self.linear.weight.copy_(weight[None])
        self.linear.bias.copy_((mean - centre @ weight)[None])
