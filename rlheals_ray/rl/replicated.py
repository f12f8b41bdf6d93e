"""A policy that every worker holds whole: alone (`none`), or with gradients summed (`ddp`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rlheals_ray.rl.policy_state import Shards, world, write_shard
from rlheals_ray.sharding import wrapped_name

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's state of a parameter, by the names that torch gives it."""


class Replicated:
    """See `rlheals_ray.rl.sharded_policy.Mode`."""

    def __init__(self, model: nn.Module, learning_rate: float, max_grad_norm: float) -> None:
        self.model = self.module = model
        self.workers = world()[1]
        if self.workers > 1:
            self.module = DistributedDataParallel(model, forward_sync_buffers=False)
            # `backward` says whether to synchronise; by default the forward pass, which comes too early.
            self.module.require_backward_grad_sync = False
        self.wrapped = wrapped_name(self.module)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, weight_decay=0.0
        )
        self.max_grad_norm = max_grad_norm

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        if last and isinstance(self.module, DistributedDataParallel):
            self.module.reducer.prepare_for_backward([])
        # DistributedDataParallel averages over the workers; here they are summed.
        (loss * self.workers).backward()

    def step(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        if world()[0] == 0:
            for name, tensor in self.model.state_dict().items():
                yield name, tensor.detach().cpu()

    def write_state(self, version: Path) -> None:
        if world()[0] > 0:
            return  # one worker's copy is everybody's
        tensors = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"model/{name}"] = parameter.detach().contiguous()
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"{moment}/{name}"] = value.contiguous()
        write_shard(version, tensors, {"divided": "rows"})

    @torch.no_grad()
    def read_state(self, shards: Shards) -> None:
        names = set(shards.require("rows").names())
        for name, parameter in self.model.named_parameters():
            parameter.copy_(shards.whole(f"model/{name}"))
            self.optimizer.state[parameter] = {
                moment: shards.whole(key).to("cpu" if moment == "step" else parameter.device)
                for moment in MOMENTS
                if (key := f"{moment}/{name}") in names
            }
