"""Sums and rows over all workers of a learner's group; what one worker does alone is left as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rlheals_ray.rl.policy_state import world


def total(value: float) -> float:
    """The sum of `value` over the workers, on every worker; in float64."""
    if world()[1] == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.item()


def gathered(values: torch.Tensor) -> torch.Tensor:
    """The rows of every worker, in rank order, on every worker and on the CPU."""
    values = values.detach().cpu()
    if world()[1] == 1:
        return values
    parts: list[Any] = [None] * world()[1]
    dist.all_gather_object(parts, values)
    return torch.cat(parts)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of replicated parameters over the workers, in place."""
    if world()[1] == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
