"""The critic: a linear value of the policy's last hidden state before each action.

The features are detached: the value never moves the policy. On the first rollout of a branch it is
fitted in closed form (ridge regression), because RL that starts with an ignorant critic first
destroys the policy that it was given. Every worker holds the same copy.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from rlheals_ray.rl.policy_state import world

RIDGE = 1.0
"""Penalty on the weights, in units of one action's squared feature."""


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
        """Ridge regression of returns (n,) on features (n, hidden), with a free intercept.

        Collective: n is each worker's own, the fit is that of the rows of all workers.
        """
        x, y = features.double(), returns.double()
        count = _sum(x.new_tensor(float(len(x))))
        centre, mean = _sum(x.sum(0)) / count, _sum(y.sum()) / count
        x = x - centre
        gram = _sum(x.T @ x) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(gram, _sum(x.T @ (y - mean)))
        self.linear.weight.copy_(weight[None])
        self.linear.bias.copy_((mean - centre @ weight)[None])


def _sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over all workers, on every worker."""
    if world()[1] > 1:
        dist.all_reduce(values)
    return values
