"""A policy whose parameters, gradients and moments are divided over the workers by torch's FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rlheals_ray.rl.policy_state import Shards, world, write_shard
from rlheals_ray.rl.replicated import MOMENTS
from rlheals_ray.sharding import layer_classes, wrapped_name


class FullySharded:
    """See `rlheals_ray.rl.sharded_policy.Mode`."""

    module: Any

    def __init__(self, model: nn.Module, learning_rate: float, max_grad_norm: float) -> None:
        self.workers = world()[1]
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (self.workers,))
        names = layer_classes(model)
        for module in list(model.modules()):
            if type(module).__name__ in names:
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
        # The root's own parameters too are divided again after a forward pass: by default they would stay
        # whole after one without gradients, and be found so by whoever asks for the weights.
        self.module = fully_shard(model, mesh=mesh, reshard_after_forward=True)
        assert isinstance(self.module, FSDPModule)
        self.wrapped = wrapped_name(self.module)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, weight_decay=0.0
        )
        self.max_grad_norm = max_grad_norm

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        # Also where more micro-batches follow the gradient is divided at once: else a worker held all of it.
        # FSDP averages over the workers; here they are summed.
        (loss * self.workers).backward()

    def step(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if torch.isfinite(whole):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(whole)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.module.state_dict().items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if world()[0] == 0:
                yield name, whole.detach().cpu()

    def write_state(self, version: Path) -> None:
        tensors = {}
        for name, parameter in self.module.named_parameters():
            tensors[f"model/{name}"] = _own(parameter.detach())
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"{moment}/{name}"] = _own(value)
        write_shard(version, tensors, {"divided": "rows"})

    @torch.no_grad()
    def read_state(self, shards: Shards) -> None:
        names = set(shards.require("rows").names())
        for name, parameter in self.module.named_parameters():
            parameter.copy_(_divided(shards.whole(f"model/{name}"), parameter))
            self.optimizer.state[parameter] = {
                moment: value if value.ndim == 0 else _divided(value, parameter)
                for moment in MOMENTS
                if (key := f"{moment}/{name}") in names
                for value in [shards.whole(key)]
            }


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """This worker's rows."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).contiguous()


def _divided(whole: torch.Tensor, like: DTensor) -> DTensor:
    """Divide what every worker has read, without communication."""
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
